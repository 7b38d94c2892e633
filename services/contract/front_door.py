"""Envoy's two questions to this service, in Envoy's own protocols: may this request go on (ext_authz), and: it has ended (access log).

Envoy asks only where it was told to (`ask`), and reports what a subject used wherever there is one.

Invariant: no token of an answer comes here; a refusal has the shape of the API that was called, because a client reads it as it is.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from llamesh.kit.envoy_api import message_class
from llamesh.kit.errors import MeshError, Reason, name_of
from llamesh.kit.inference_errors import error_body
from llamesh.kit.logs import log
from services.contract.admission import Leases
from services.contract.contracts import ConcurrencyLimits, not_found
from services.contract.decisions import Decided, Decisions
from services.contract.policy import Refusal
from services.contract.usage import Account, Ledger, day_of

CLAIMS = "envoy.filters.http.jwt_authn"
"""Namespace of the metadata that holds the verified token's payload under the key "claims"."""
USAGE = "llamesh.usage"
CLUSTER_HEADER = "x-llamesh-cluster"
CLUSTER_PREFIX = len("m:")
"""A cluster's name is `m:` and a model's name, or `s:` and a server's id."""
ASKED_LOG = "asked"
"""The access log of requests that Admission was asked about."""

RETRY_SECONDS = 1
"""When a client that was refused for contention may come back."""
MOST_TOKENS = 1 << 40
"""More than any answer has: such a count is not believed."""

_CheckRequest = message_class("envoy.service.auth.v3.CheckRequest")
_CheckResponse = message_class("envoy.service.auth.v3.CheckResponse")
_LogMessage = message_class("envoy.service.accesslog.v3.StreamAccessLogsMessage")
_LogResponse = message_class("envoy.service.accesslog.v3.StreamAccessLogsResponse")

_ALLOWED: bytes = _CheckResponse().SerializeToString()
_ENDED: bytes = _LogResponse().SerializeToString()
_COUNTED_OUT = (403, 429)
"""Refusals that only `check` gives, and only without a lease; a 503 may also be Envoy's own, after a lease was taken."""
_TYPES = {403: "permission_error", 429: "rate_limit_error", 503: "server_error"}


class FrontDoor:
    """Answers Envoy."""

    def __init__(
        self, leases: Leases, limits: ConcurrencyLimits, ledger: Ledger, decisions: Decisions, stopping: asyncio.Event
    ) -> None:
        self._leases = leases
        self._limits = limits
        self._ledger = ledger
        self._decisions = decisions
        self._stopping = stopping
        self._asked_logs = 0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve Envoy's protocols on a server."""
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "envoy.service.auth.v3.Authorization",
                    {"Check": grpc.unary_unary_rpc_method_handler(self.check, _CheckRequest.FromString, _as_it_is)},
                ),
                grpc.method_handlers_generic_handler(
                    "envoy.service.accesslog.v3.AccessLogService",
                    {
                        "StreamAccessLogs": grpc.stream_unary_rpc_method_handler(
                            self.stream_access_logs, _LogMessage.FromString, _as_it_is
                        )
                    },
                ),
            )
        )

    async def check(self, request: Any, _context: object) -> bytes:
        """May a request go on? Without a contract nothing is limited; with one, as many at the same time as it says."""
        attributes = request.attributes
        claims = _fields(attributes.metadata_context, CLAIMS, "claims")
        contract_id = claims["contract"].string_value if "contract" in claims else ""
        if not contract_id:
            return _ALLOWED
        try:
            limit = await self._limits.limit(contract_id)
        except MeshError as unknown:
            # Nothing is known of this contract: to let it pass would be to have no limits while the database is away.
            return _refusal(503, unknown, attributes)
        http = attributes.request.http
        if limit is None:
            return self._refuse(403, not_found(contract_id), claims, attributes)
        if limit and not self._leases.take(contract_id, http.headers.get("x-request-id") or http.id, limit):
            error = MeshError(
                Reason.ERROR_REASON_CONCURRENCY_EXCEEDED,
                f"contract {contract_id} allows {limit} requests at the same time, and as many are running",
                {"contractId": contract_id, "limit": str(limit)},
                retry_after=RETRY_SECONDS,
            )
            return self._refuse(429, error, claims, attributes)
        return _ALLOWED

    async def stream_access_logs(self, messages: AsyncIterator[Any], _context: object) -> bytes:
        """Requests that have ended, until Envoy is gone or this process stops: Envoy opens another stream then."""
        reader = asyncio.create_task(self._read(messages))
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({reader, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            stop.cancel()
            await asyncio.gather(reader, stop, return_exceptions=True)
        return _ENDED

    async def _read(self, messages: AsyncIterator[Any]) -> None:
        asked = False
        try:
            async for message in messages:
                if not asked and message.identifier.log_name == ASKED_LOG:
                    asked = True
                    self._asked_logs += 1
                for entry in message.http_logs.log_entry:
                    self.ended(entry)
        finally:
            if asked:
                self._asked_logs -= 1
                # An Envoy that was killed reports nothing of what it carried, and none of that runs any more.
                if not self._asked_logs:
                    self._leases.forget_all()

    def ended(self, entry: Any) -> None:
        """Settle one request that has ended."""
        common = entry.common_properties
        status = entry.response.response_code.value
        if status in _COUNTED_OUT and common.response_flags.HasField("unauthorized_details"):
            return  # refused by `check`: it holds no lease, though its id may be that of another which does
        self._leases.give_back(entry.request.request_id)
        if not 200 <= status < 300:
            return
        claims = _fields(common.metadata, CLAIMS, "claims")
        account = Account(
            day_of(common.start_time.seconds),
            claims["sub"].string_value[:128] if "sub" in claims else "",
            _target(entry.request.request_headers)[:256],
            claims["contract"].string_value[:64] if "contract" in claims else "",
        )
        self._ledger.add(account, _tokens(common.metadata))

    def _refuse(self, status: int, error: MeshError, claims: Any, attributes: Any) -> bytes:
        metadata = {key: str(value) for key, value in error.metadata.items()}
        refusal = Refusal(name_of(error.reason), error.message, error.remedy, metadata)
        subject = claims["sub"].string_value if "sub" in claims else ""
        contract_id = claims["contract"].string_value
        target = _target(attributes.request.http.headers)
        self._decisions.note(Decided(subject, "infer", target, contract_id, [refusal]))
        log.info("refused", subject=subject, contract_id=contract_id, reason=refusal.reason)
        return _refusal(status, error, attributes)


def _refusal(status: int, error: MeshError, attributes: Any) -> bytes:
    response = _CheckResponse()
    response.status.code = error.code.value[0]
    denied = response.denied_response
    denied.status.code = status
    message, code = f"{error.message}. {error.remedy}", name_of(error.reason).lower()
    denied.body = json.dumps(error_body(attributes.request.http.path, status, message, _TYPES[status], code))
    headers = {"content-type": "application/json"}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    for key, value in headers.items():
        header = denied.headers.add().header
        header.key, header.value = key, value
    serialised: bytes = response.SerializeToString()
    return serialised


def _fields(metadata: Any, namespace: str, key: str = "") -> Any:
    """The values under a namespace of the metadata, or under a key in it; empty where there are none."""
    if namespace not in metadata.filter_metadata:
        return {}
    fields = metadata.filter_metadata[namespace].fields
    if not key:
        return fields
    return fields[key].struct_value.fields if key in fields else {}


def _target(headers: Any) -> str:
    """The name that was asked for, or the server's id where the path named one (its "model" is then any text)."""
    return str(headers.get(CLUSTER_HEADER, "")[CLUSTER_PREFIX:])


def _tokens(metadata: Any) -> tuple[int, int] | None:
    """Tokens of prompt and answer, in OpenAI's words or in those of its newer API; None where the answer did not say."""
    usage = _fields(metadata, USAGE)
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    completion = _count(usage, "completion_tokens", "output_tokens")
    if prompt is None and completion is None:
        return None
    return prompt or 0, completion or 0


def _count(usage: Any, *names: str) -> int | None:
    for name in names:
        if name in usage:
            value = usage[name].number_value
            return int(value) if 0 <= value < MOST_TOKENS else None
    return None


_as_it_is: Callable[[bytes], bytes] = bytes
"""The serialiser of handlers that answer in bytes."""
