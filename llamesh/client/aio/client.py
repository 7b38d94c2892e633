# ruff: noqa: ASYNC109 a timeout here is the deadline of a gRPC call, which the server learns of
"""The client of one mesh: login, health, usage, decisions and the watch, and one attribute for each kind of object."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llamesh.client import errors
from llamesh.client.aio.contracts import AsyncContracts
from llamesh.client.aio.keys import AsyncKeys
from llamesh.client.aio.models import AsyncModels
from llamesh.client.aio.quant import AsyncQuant
from llamesh.client.aio.servers import AsyncServers
from llamesh.client.aio.users import AsyncUsers
from llamesh.client.aio.watching import is_full, watched
from llamesh.client.contexts import NoMeshSelectedError
from llamesh.client.parameters import Parameters, combined
from llamesh.client.profile import Profile, load_profile
from llamesh.client.references import Model, Server, model_uuid_of, server_uuid_of
from llamesh.client.services import CONTRACT, GATEWAY
from llamesh.client.transport import AsyncTransport
from llamesh.runtime_parameters import Value
from llamesh.v1 import contract_pb2, gateway_pb2, server_pb2

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class AsyncClient:
    """One mesh. `async with AsyncClient() as mesh:`; address and token as given, else LLAMESH_URL and LLAMESH_TOKEN, else
    the context of LLAMESH_CONTEXT, else the mesh of LLAMESH_HOME, else the selected context. NoMeshSelectedError if what they name
    cannot be used, as `llamesh.client.profile.load_profile` says."""

    def __init__(self, url: str = "", token: str = "", *, inference_url: str = "") -> None:
        try:
            found = load_profile()
        except NoMeshSelectedError:
            if not url:
                raise
            found = Profile(url.rstrip("/"))
        same = not url or url.rstrip("/") == found.url
        self.profile = Profile(
            url=url.rstrip("/") or found.url,
            token=token or (found.token if same else ""),
            inference_url=inference_url or (found.inference_url if same else ""),
        )
        self.transport = AsyncTransport(self.profile.url, self.profile.token)
        self.silence = self.transport.silence
        """For how long the mesh has not answered a watch or a wait, who is told of it, and after how long each of them gives up."""
        self.models = AsyncModels(self)
        self.servers = AsyncServers(self)
        self.keys = AsyncKeys(self.transport)
        self.users = AsyncUsers(self.transport)
        self.contracts = AsyncContracts(self.transport)
        self.quant = AsyncQuant(self.transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self.transport.close()

    async def login(
        self, username: str, password: str, *, timeout: float | None = None
    ) -> gateway_pb2.CreateTokenResponse:
        """Get a token for a name and a password and use it from now on. The token used so far is not sent along."""
        request = gateway_pb2.CreateTokenRequest(username=username, password=password)
        before, self.transport.token = self.transport.token, ""
        try:
            answer = await self.transport.call(
                f"{GATEWAY}/CreateToken", request, gateway_pb2.CreateTokenResponse, timeout
            )
            before = answer.access_token
        finally:
            self.transport.token = before
        return answer

    async def health(self, *, timeout: float | None = None) -> gateway_pb2.Health:
        """Return the health of the mesh and of each of its components."""
        request = gateway_pb2.GetHealthRequest()
        return await self.transport.call(f"{GATEWAY}/GetHealth", request, gateway_pb2.Health, timeout)

    async def check(
        self,
        model: Model,
        *,
        replicas: int = 1,
        runtime_params: str = "",
        parameters: Parameters | None = None,
        namespace: str = "",
        placement: server_pb2.Placement | None = None,
        timeout: float | None = None,
        **named: Value | None,
    ) -> contract_pb2.CheckResponse:
        """Check whether a server would be admitted and how much memory it needs. A refusal is returned, not raised.

        Runtime parameters are given as for `servers.serve`.
        """
        request = contract_pb2.CheckRequest(
            model_uuid=model_uuid_of(model),
            replicas=replicas,
            runtime_params=runtime_params,
            parameters=combined(parameters, named),
            namespace=namespace,
            placement=placement,
        )
        return await self.transport.call(f"{CONTRACT}/Check", request, contract_pb2.CheckResponse, timeout)

    def usage(self, *, subject: str = "", days: float | None = None) -> AsyncIterator[contract_pb2.Usage]:
        """Return requests and tokens by day, subject and model, of the last `days` days (default 30)."""
        request = contract_pb2.ListUsageRequest(subject=subject)
        if days is not None:
            request.start_time.FromSeconds(int(time.time() - days * 86400))
        return self.keys.pages(f"{CONTRACT}/ListUsage", request, contract_pb2.ListUsageResponse, "usage")

    def decisions(self, *, refused_only: bool = False) -> AsyncIterator[contract_pb2.Decision]:
        """Decisions, newest first."""
        request = contract_pb2.ListDecisionsRequest(refused_only=refused_only)
        return self.keys.pages(f"{CONTRACT}/ListDecisions", request, contract_pb2.ListDecisionsResponse, "decisions")

    async def decision(self, decision_id: str, *, timeout: float | None = None) -> contract_pb2.Decision:
        """Return one decision: what was allowed or refused, and why."""
        request = contract_pb2.GetDecisionRequest(decision_id=decision_id)
        return await self.transport.call(f"{CONTRACT}/GetDecision", request, contract_pb2.Decision, timeout)

    async def watch(
        self,
        *,
        kinds: Sequence[str] = (),
        servers: Sequence[Server] = (),
        models: Sequence[Model] = (),
        patient: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[gateway_pb2.WatchResponse]:
        """Yield all objects, then each change; the kinds are SERVERS, DOWNLOADS and MODELS.

        After a lost connection the watch reconnects and continues from its last position. It ends only if its reader stops, if an
        error occurs that a retry cannot cure, with DeadlineExceeded after `timeout` seconds, or with the error of its last try if the
        mesh has not answered for `silence.max_seconds` of this client, which has no such bound by default.
        With `patient` a watch waits for room if this user has as many open as one may have; else it raises TooManyWatches.
        """
        request = gateway_pb2.WatchRequest(
            kinds=[gateway_pb2.WatchKind.Value(f"WATCH_KIND_{kind}") for kind in kinds],
            server_uuids=[server_uuid_of(server) for server in servers],
            model_uuids=[model_uuid_of(model) for model in models],
        )

        def begin(deadline: float | None) -> AsyncIterator[gateway_pb2.WatchResponse]:
            return self.transport.stream(f"{GATEWAY}/Watch", request, gateway_pb2.WatchResponse, deadline)

        def starts_over(error: errors.MeshError) -> bool:
            if error.reason != "RESUME_TOKEN_EXPIRED":
                return patient and is_full(error)
            request.resume_token = ""
            return True

        async for event in watched(begin, timeout, self.silence, starts_over):
            request.resume_token = event.resume_token or request.resume_token
            if event.WhichOneof("event") != "heartbeat":
                yield event

    def openai(self, server: server_pb2.Server | None = None, **options: Any) -> AsyncOpenAI:
        """Return the official OpenAI client, for one server or for all servers by model name.

        ImportError if it is not installed; ValueError if the mesh's inference address is not known.
        """
        from openai import AsyncOpenAI

        # Use the inference address that this client knows: the address that the mesh reports may not be reachable from here.
        if server and not self.profile.inference_url:
            address = server.endpoint
        else:
            address = f"{self.profile.inference}/{server.server_uuid}/v1" if server else f"{self.profile.inference}/v1"
        return AsyncOpenAI(base_url=address, api_key=self.transport.token or "not-needed", **options)
