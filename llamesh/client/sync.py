# ruff: noqa: UP028 a loop over what comes, as in the source
"""The mesh without `await`: `Client` and its parts. Written from aio.py by tools/sync_client.py; edit there."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from google.protobuf.message import Message

from llamesh.client import errors
from llamesh.client.names import resolve
from llamesh.client.parameters import Parameters, combined
from llamesh.client.profile import NoMeshRunsError, Profile, load_profile
from llamesh.client.transport import Transport
from llamesh.runtime_parameters import Value
from llamesh.v1 import contract_pb2, download_pb2, gateway_pb2, model_pb2, server_pb2

if TYPE_CHECKING:
    from openai import OpenAI

GATEWAY = "llamesh.v1.GatewayService"
CONTRACT = "llamesh.v1.ContractService"
DOWNLOAD = "llamesh.v1.DownloadService"
FIRST_RECONNECT = 0.1
LONGEST_RECONNECT = 5.0
Item = TypeVar("Item", bound=Message)
Model = str | model_pb2.Model | download_pb2.Download
Server = str | server_pb2.Server


_ENDED = frozenset(
    {
        download_pb2.DOWNLOAD_STATE_SUCCEEDED,
        download_pb2.DOWNLOAD_STATE_FAILED,
        download_pb2.DOWNLOAD_STATE_CANCELLED,
    }
)


class Part:
    """What the parts of the client share."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._call = transport.call

    def pages(self, method: str, request: Any, answer: type[Message], field: str) -> Iterator[Any]:
        """The items of a list, one page after the other."""
        while True:
            page: Any = self._call(method, request, answer)
            for item in getattr(page, field):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


class Pull:
    """A model on its way."""

    def __init__(self, mesh: Client, download: download_pb2.Download) -> None:
        self._mesh = mesh
        self.download = download
        """The download as it was last seen."""
        self.model_uuid = download.model_uuid

    def progress(self, timeout: float | None = None) -> Iterator[download_pb2.Download]:
        """The download each time it changes, until it has ended. The error of the contract's reason where it failed."""
        yield self.download
        if self._ended():
            return
        for event in self._mesh.watch(models=[self.model_uuid], kinds=["DOWNLOADS"], timeout=timeout):
            if event.WhichOneof("event") == "download":
                self.download = self._counting(event.download)
                yield self.download
                if self._ended():
                    return

    def _counting(self, told: download_pb2.Download) -> download_pb2.Download:
        """The download as it counts. A watch may begin with how an earlier attempt ended: whoever fetches the model knows better."""
        if told.state not in _ENDED or told.create_time == self.download.create_time:
            return told
        return (self._mesh.models.pulling(self.model_uuid)).download

    def _ended(self) -> bool:
        state = download_pb2.DownloadState.Name(self.download.state).removeprefix("DOWNLOAD_STATE_")
        if state == "FAILED":
            error = errors.of_reason(self.download.error.reason, self.download.error.message)
            error.remedy = self.download.error.remedy or error.remedy
            raise error
        if state == "CANCELLED":
            raise errors.MeshError(f"the download of {self.model_uuid} was cancelled")
        return state == "SUCCEEDED"

    def wait(
        self, timeout: float | None = None, on_progress: Callable[[download_pb2.Download], None] | None = None
    ) -> model_pb2.Model:
        """Wait until the model can be served."""
        for download in self.progress(timeout):
            if on_progress:
                on_progress(download)
        return self._mesh.models.get(self.model_uuid)


class Models(Part):
    """Models and their downloads."""

    def __init__(self, mesh: Client) -> None:
        super().__init__(mesh.transport)
        self._mesh = mesh

    def list(self) -> Iterator[model_pb2.Model]:
        """Models that can be served; pages are fetched as needed."""
        request = gateway_pb2.ListModelsRequest()
        return self.pages(f"{GATEWAY}/ListModels", request, gateway_pb2.ListModelsResponse, "models")

    def get(self, model: Model, *, timeout: float | None = None) -> model_pb2.Model:
        """One model by its id."""
        request = gateway_pb2.GetModelRequest(model_uuid=_model(model))
        return self._call(f"{GATEWAY}/GetModel", request, model_pb2.Model, timeout)

    def find(self, name: str) -> str:
        """The id that is meant by an id or a name."""
        return resolve(name, [(item.model_uuid, item.name) for item in self.list()])

    def delete(self, model: Model, *, timeout: float | None = None) -> model_pb2.Model:
        """Remove a model that no server uses."""
        request = gateway_pb2.DeleteModelRequest(model_uuid=_model(model))
        return self._call(f"{GATEWAY}/DeleteModel", request, model_pb2.Model, timeout)

    def pull(
        self, source: str | Path, *, uuid: str = "", name: str = "", sha256: str = "", timeout: float | None = None
    ) -> Pull:
        """Begin to fetch a model from an address, or a file below the mesh's import folders. `uuid` is made from the name if not given."""
        address = _address(source)
        file = name or unquote(address.partition("?")[0].rpartition("/")[2])
        request = download_pb2.StartDownloadRequest(
            model_uuid=uuid or re.sub(r"[^A-Za-z0-9._-]+", "-", file).strip("-._")[:128],
            source=address,
            name=name,
            sha256=sha256,
        )
        download = self._call(f"{DOWNLOAD}/StartDownload", request, download_pb2.Download, timeout)
        return Pull(self._mesh, download)

    def pulling(self, model: Model, *, timeout: float | None = None) -> Pull:
        """The download of a model, under way or ended."""
        request = download_pb2.GetDownloadRequest(model_uuid=_model(model))
        return Pull(self._mesh, self._call(f"{DOWNLOAD}/GetDownload", request, download_pb2.Download, timeout))

    def downloads(self) -> Iterator[download_pb2.Download]:
        """All downloads, newest first."""
        request = download_pb2.ListDownloadsRequest()
        return self.pages(f"{DOWNLOAD}/ListDownloads", request, download_pb2.ListDownloadsResponse, "downloads")

    def cancel(self, model: Model, *, timeout: float | None = None) -> download_pb2.Download:
        """Stop a download."""
        request = download_pb2.CancelDownloadRequest(model_uuid=_model(model))
        return self._call(f"{DOWNLOAD}/CancelDownload", request, download_pb2.Download, timeout)


class Servers(Part):
    """Declared servers."""

    def __init__(self, mesh: Client) -> None:
        super().__init__(mesh.transport)
        self._mesh = mesh

    def serve(
        self,
        model: Model,
        *,
        name: str = "",
        replicas: int = 1,
        runtime_params: str = "",
        parameters: Parameters | None = None,
        idle_sleep: float | None = None,
        wake_budget: float | None = None,
        namespace: str = "",
        metered: bool = False,
        request_id: str = "",
        timeout: float | None = None,
        **named: Value | None,
    ) -> server_pb2.Server:
        """Serve a model. Runtime parameters by name (`ctx_size=2048`, `cache_type_k="q8_0"`), or as llama.cpp's flags in `runtime_params`.

        `parameters` takes runtime parameters as a mapping or a message. A parameter whose name is an argument of this call can
        only be given there: `timeout` here is the deadline of the call, `parameters={"timeout": 60}` that of the server's answers.
        The call carries a `request_id`, so that it may be repeated and still declares one server.
        """
        request = gateway_pb2.ServeRequest(
            model_uuid=_model(model),
            model_name=name,
            replicas=replicas,
            runtime_params=runtime_params,
            parameters=combined(parameters, named),
            namespace=namespace,
            metered=metered,
            request_id=request_id or uuid.uuid4().hex,
        )
        _seconds(request.idle_sleep, idle_sleep)
        _seconds(request.wake_budget, wake_budget)
        return self._call(f"{GATEWAY}/Serve", request, server_pb2.Server, timeout)

    def list(self) -> Iterator[server_pb2.Server]:
        """Every declared server; pages are fetched as needed."""
        request = gateway_pb2.ListServersRequest()
        return self.pages(f"{GATEWAY}/ListServers", request, gateway_pb2.ListServersResponse, "servers")

    def get(self, server: Server, *, timeout: float | None = None) -> server_pb2.Server:
        """One server by its id."""
        request = gateway_pb2.GetServerRequest(server_uuid=_server(server))
        return self._call(f"{GATEWAY}/GetServer", request, server_pb2.Server, timeout)

    def find(self, name: str) -> str:
        """The id that is meant by an id, a served name, or the beginning of an id."""
        return resolve(name, [(item.server_uuid, item.model_name) for item in self.list()], shortened=True)

    def update(
        self, server: Server, changes: server_pb2.ServerChanges, *, etag: str = "", timeout: float | None = None
    ) -> server_pb2.Server:
        """Change what is set in `changes`. With an `etag`, only if nobody else has changed it since."""
        request = gateway_pb2.UpdateServerRequest(server_uuid=_server(server), changes=changes, etag=etag)
        return self._call(f"{GATEWAY}/UpdateServer", request, server_pb2.Server, timeout)

    def scale(
        self, server: Server, replicas: int, *, etag: str = "", timeout: float | None = None
    ) -> server_pb2.Server:
        """Change the number of replicas. With an `etag`, only if nobody else has changed the server since."""
        request = gateway_pb2.ScaleServerRequest(server_uuid=_server(server), replicas=replicas, etag=etag)
        return self._call(f"{GATEWAY}/ScaleServer", request, server_pb2.Server, timeout)

    def sleep(self, server: Server, *, timeout: float | None = None) -> server_pb2.Server:
        """Stop the engines until the next request."""
        request = gateway_pb2.SleepServerRequest(server_uuid=_server(server))
        return self._call(f"{GATEWAY}/SleepServer", request, server_pb2.Server, timeout)

    def wake(self, server: Server, *, timeout: float | None = None) -> server_pb2.Server:
        """Start the engines of a sleeping server."""
        request = gateway_pb2.WakeServerRequest(server_uuid=_server(server))
        return self._call(f"{GATEWAY}/WakeServer", request, server_pb2.Server, timeout)

    def stop(self, server: Server, *, etag: str = "", timeout: float | None = None) -> server_pb2.Server:
        """Stop a server and forget it. With an `etag`, only if nobody else has changed it since."""
        request = gateway_pb2.StopRequest(server_uuid=_server(server), etag=etag)
        return self._call(f"{GATEWAY}/Stop", request, server_pb2.Server, timeout)

    def wait_ready(
        self,
        server: Server,
        *,
        timeout: float | None = 120.0,
        on_change: Callable[[server_pb2.Server], None] | None = None,
    ) -> server_pb2.Server:
        """Wait until every wanted engine answers. EngineFailed where engines fail, DeadlineExceeded after `timeout` seconds."""
        wanted = _server(server)
        seen = server_pb2.Server(server_uuid=wanted)
        try:
            for event in self._mesh.watch(servers=[wanted], kinds=["SERVERS"], timeout=timeout):
                kind = event.WhichOneof("event")
                if kind == "server":
                    seen = event.server
                    if on_change:
                        on_change(seen)
                    if seen.state == server_pb2.SERVER_STATE_READY:
                        return seen
                    if seen.state == server_pb2.SERVER_STATE_FAILING:
                        raise errors.of_reason("ENGINE_FAILED", _why(seen), metadata={"serverUuid": wanted})
                elif kind == "stopped_server":
                    raise errors.of_reason("SERVER_NOT_FOUND", f"the server {wanted} was stopped")
                elif kind == "synced":
                    self.get(wanted)  # Not found is an error, not something to wait for.
        except TimeoutError as error:
            words = f"{wanted} is not ready after {timeout:g} s: {_why(seen)}"
            raise errors.of_reason("DEADLINE_EXCEEDED", words) from error
        raise errors.MeshError(f"the watch of {wanted} ended")

    def logs(self, server: Server, *, replica: int = 0, tail: int = 100, follow: bool = False) -> Iterator[str]:
        """The last lines of an engine's log and, to follow, those that come."""
        request = gateway_pb2.ReadServerLogRequest(
            server_uuid=_server(server), replica=replica, tail_lines=tail, follow=follow
        )
        stream = self._transport.stream(f"{GATEWAY}/ReadServerLog", request, gateway_pb2.ReadServerLogResponse)
        for part in stream:
            for line in part.lines:
                yield line


class Keys(Part):
    """Keys: tokens for programs."""

    def create(
        self, name: str, *, scopes: Sequence[str] = (), contract: str = "", days: int = 0, timeout: float | None = None
    ) -> contract_pb2.CreateKeyResponse:
        """Make a key. Its token is in the answer and never shown again."""
        request = contract_pb2.CreateKeyRequest(
            display_name=name, scopes=scopes, contract_id=contract, expire_days=days
        )
        return self._call(f"{CONTRACT}/CreateKey", request, contract_pb2.CreateKeyResponse, timeout)

    def list(self) -> Iterator[contract_pb2.Key]:
        """Your keys; administrators see all."""
        request = contract_pb2.ListKeysRequest()
        return self.pages(f"{CONTRACT}/ListKeys", request, contract_pb2.ListKeysResponse, "keys")

    def revoke(self, key_id: str, *, timeout: float | None = None) -> contract_pb2.Key:
        """End a key."""
        request = contract_pb2.RevokeKeyRequest(key_id=key_id)
        return self._call(f"{CONTRACT}/RevokeKey", request, contract_pb2.Key, timeout)


class Users(Part):
    """Who can log in."""

    def create(
        self, username: str, password: str, *, role: str = "USER", contract: str = "", timeout: float | None = None
    ) -> gateway_pb2.User:
        """Make a user; roles are INFERENCE, USER and ADMIN."""
        request = gateway_pb2.CreateUserRequest(
            username=username, password=password, role=gateway_pb2.Role.Value(f"ROLE_{role}"), contract_id=contract
        )
        return self._call(f"{GATEWAY}/CreateUser", request, gateway_pb2.User, timeout)

    def list(self) -> Iterator[gateway_pb2.User]:
        """Users by name."""
        request = gateway_pb2.ListUsersRequest()
        return self.pages(f"{GATEWAY}/ListUsers", request, gateway_pb2.ListUsersResponse, "users")

    def update(
        self,
        username: str,
        *,
        password: str | None = None,
        old_password: str = "",
        role: str | None = None,
        contract: str | None = None,
        disabled: bool | None = None,
        timeout: float | None = None,
    ) -> gateway_pb2.User:
        """Change what is given. Users change their own password with the old one. `disabled`: no token of the user counts."""
        request = gateway_pb2.UpdateUserRequest(
            username=username,
            password=password,
            old_password=old_password,
            role=gateway_pb2.Role.Value(f"ROLE_{role}") if role else None,
            contract_id=contract,
            disabled=disabled,
        )
        return self._call(f"{GATEWAY}/UpdateUser", request, gateway_pb2.User, timeout)

    def delete(self, username: str, *, timeout: float | None = None) -> gateway_pb2.User:
        """Remove a user. Its tokens and keys end."""
        request = gateway_pb2.DeleteUserRequest(username=username)
        return self._call(f"{GATEWAY}/DeleteUser", request, gateway_pb2.User, timeout)


class Contracts(Part):
    """What someone may use."""

    def create(
        self, name: str, *, concurrent: int = 0, models: Sequence[str] = (), timeout: float | None = None
    ) -> contract_pb2.Contract:
        """Make a contract: requests at the same time (0: no limit) and names of models (none: all)."""
        request = contract_pb2.CreateContractRequest(
            display_name=name, max_concurrent_requests=concurrent, models=models
        )
        return self._call(f"{CONTRACT}/CreateContract", request, contract_pb2.Contract, timeout)

    def list(self) -> Iterator[contract_pb2.Contract]:
        """All contracts."""
        request = contract_pb2.ListContractsRequest()
        return self.pages(f"{CONTRACT}/ListContracts", request, contract_pb2.ListContractsResponse, "contracts")

    def update(
        self,
        contract_id: str,
        *,
        name: str | None = None,
        concurrent: int | None = None,
        models: Sequence[str] = (),
        timeout: float | None = None,
    ) -> contract_pb2.Contract:
        """Change what is given."""
        request = contract_pb2.UpdateContractRequest(
            contract_id=contract_id, display_name=name, max_concurrent_requests=concurrent, models=models
        )
        return self._call(f"{CONTRACT}/UpdateContract", request, contract_pb2.Contract, timeout)

    def delete(self, contract_id: str, *, timeout: float | None = None) -> contract_pb2.Contract:
        """Remove a contract that nothing refers to."""
        request = contract_pb2.DeleteContractRequest(contract_id=contract_id)
        return self._call(f"{CONTRACT}/DeleteContract", request, contract_pb2.Contract, timeout)


class Client:
    """One mesh. `with Client() as mesh:`; address and token as given, else LLAMESH_URL and LLAMESH_TOKEN, else
    the mesh of LLAMESH_HOME, else the profile. NoMeshRunsError if LLAMESH_HOME is given and no mesh runs there."""

    def __init__(self, url: str = "", token: str = "", *, inference_url: str = "") -> None:
        try:
            found = load_profile()
        except NoMeshRunsError:
            if not url:
                raise
            found = Profile(url.rstrip("/"))
        same = not url or url.rstrip("/") == found.url
        self.profile = Profile(
            url=url.rstrip("/") or found.url,
            token=token or (found.token if same else ""),
            inference_url=inference_url or (found.inference_url if same else ""),
        )
        self.transport = Transport(self.profile.url, self.profile.token)
        self.models = Models(self)
        self.servers = Servers(self)
        self.keys = Keys(self.transport)
        self.users = Users(self.transport)
        self.contracts = Contracts(self.transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.transport.close()

    def login(self, username: str, password: str, *, timeout: float | None = None) -> gateway_pb2.CreateTokenResponse:
        """Get a token for a name and a password and use it from now on."""
        request = gateway_pb2.CreateTokenRequest(username=username, password=password)
        answer = self.transport.call(f"{GATEWAY}/CreateToken", request, gateway_pb2.CreateTokenResponse, timeout)
        self.transport.token = answer.access_token
        return answer

    def health(self, *, timeout: float | None = None) -> gateway_pb2.Health:
        """How the mesh and each of its parts do."""
        request = gateway_pb2.GetHealthRequest()
        return self.transport.call(f"{GATEWAY}/GetHealth", request, gateway_pb2.Health, timeout)

    def check(
        self,
        model: Model,
        *,
        replicas: int = 1,
        runtime_params: str = "",
        parameters: Parameters | None = None,
        namespace: str = "",
        timeout: float | None = None,
        **named: Value | None,
    ) -> contract_pb2.CheckResponse:
        """Whether a model would be served so, and what it would take. A refusal is an answer, not an error.

        Runtime parameters are given as for `servers.serve`.
        """
        request = contract_pb2.CheckRequest(
            model_uuid=_model(model),
            replicas=replicas,
            runtime_params=runtime_params,
            parameters=combined(parameters, named),
            namespace=namespace,
        )
        return self.transport.call(f"{CONTRACT}/Check", request, contract_pb2.CheckResponse, timeout)

    def usage(self, *, subject: str = "", days: float | None = None) -> Iterator[contract_pb2.Usage]:
        """Requests and tokens by day, subject and model, of the last `days` (30)."""
        request = contract_pb2.ListUsageRequest(subject=subject)
        if days is not None:
            request.start_time.FromSeconds(int(time.time() - days * 86400))
        return self.keys.pages(f"{CONTRACT}/ListUsage", request, contract_pb2.ListUsageResponse, "usage")

    def decisions(self, *, refused_only: bool = False) -> Iterator[contract_pb2.Decision]:
        """Decisions, newest first."""
        request = contract_pb2.ListDecisionsRequest(refused_only=refused_only)
        return self.keys.pages(f"{CONTRACT}/ListDecisions", request, contract_pb2.ListDecisionsResponse, "decisions")

    def decision(self, decision_id: str, *, timeout: float | None = None) -> contract_pb2.Decision:
        """Why something was allowed or refused."""
        request = contract_pb2.GetDecisionRequest(decision_id=decision_id)
        return self.transport.call(f"{CONTRACT}/GetDecision", request, contract_pb2.Decision, timeout)

    def watch(
        self,
        *,
        kinds: Sequence[str] = (),
        servers: Sequence[Server] = (),
        models: Sequence[Model] = (),
        timeout: float | None = None,
    ) -> Iterator[gateway_pb2.WatchResponse]:
        """What is there, then what changes; kinds are SERVERS, DOWNLOADS and MODELS.

        A lost connection is made again and goes on where it was. Ends only by its reader, an error that trying again cannot mend,
        or, after `timeout` seconds, with DeadlineExceeded.
        """
        request = gateway_pb2.WatchRequest(
            kinds=[gateway_pb2.WatchKind.Value(f"WATCH_KIND_{kind}") for kind in kinds],
            server_uuids=[_server(server) for server in servers],
            model_uuids=[_model(model) for model in models],
        )
        ends = time.monotonic() + timeout if timeout is not None else math.inf
        pause = FIRST_RECONNECT
        while True:
            left = ends - time.monotonic()
            if left <= 0:
                raise errors.of_reason("DEADLINE_EXCEEDED", f"it did not come about within {timeout:g} s")
            try:
                stream = self.transport.stream(
                    f"{GATEWAY}/Watch", request, gateway_pb2.WatchResponse, None if left == math.inf else left
                )
                for event in stream:
                    pause = FIRST_RECONNECT
                    request.resume_token = event.resume_token or request.resume_token
                    if event.WhichOneof("event") != "heartbeat":
                        yield event
            except errors.MeshError as error:
                if error.reason == "RESUME_TOKEN_EXPIRED":
                    request.resume_token = ""
                elif error.code not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
                    raise
            time.sleep(max(min(pause, ends - time.monotonic()), 0))
            pause = min(pause * 2, LONGEST_RECONNECT)

    def openai(self, server: server_pb2.Server | None = None, **options: Any) -> OpenAI:
        """The official OpenAI client for one server, or for all by model name.

        ImportError if it is not installed; ValueError if the mesh's inference address is not known.
        """
        from openai import OpenAI

        # A client that was told its way to the inference address keeps to it: the mesh's own name for it may lead elsewhere.
        if server and not self.profile.inference_url:
            address = server.endpoint
        else:
            address = f"{self.profile.inference}/{server.server_uuid}/v1" if server else f"{self.profile.inference}/v1"
        return OpenAI(base_url=address, api_key=self.transport.token or "not-needed", **options)


def _address(source: str | Path) -> str:
    return str(source) if not source or "://" in str(source) else Path(source).expanduser().absolute().as_uri()


def _model(model: Model) -> str:
    return model if isinstance(model, str) else model.model_uuid


def _server(server: Server) -> str:
    return server if isinstance(server, str) else server.server_uuid


def _seconds(duration: Any, seconds: float | None) -> None:
    if seconds is not None:
        duration.FromNanoseconds(round(seconds * 1e9))


def _why(server: server_pb2.Server) -> str:
    for condition in server.conditions:
        if condition.type == "Ready" and condition.message:
            return condition.message
    return f"the engines of {server.server_uuid} do not answer"
