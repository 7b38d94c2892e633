"""Envoy's two questions to this service, in Envoy's own protocols: may this request go on (ext_authz), and: it has ended (access log).

Envoy asks only about tokens of which something changed or is limited, and at metered servers; it reports what a subject used wherever there
is one. What is asked is decided by what holds now: revoked keys, the user's standing, its contract and the key's (docs/adr/0017).

Invariant: generated text never passes through this service; a refusal has the shape of the API that was called, because a client reads it
as it is.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import quote

import grpc

from llamesh.kit.envoy_api import message_class
from llamesh.kit.errors import MeshError, Reason, name_of
from llamesh.kit.identity import Identity
from llamesh.kit.inference_errors import error_body
from llamesh.kit.logs import log
from llamesh.kit.rights import INFER, Rights
from llamesh.names import ASKED_LOG, CLAIMS_METADATA, CLUSTER_HEADER, SCOPES_HEADER, model_of, server_of
from services.contract import settlement
from services.contract.concurrency import ConcurrencyLimiter
from services.contract.contracts import TermsCache, not_found
from services.contract.decisions import Decision, Decisions
from services.contract.grants import inference_scopes
from services.contract.policy import Refusal
from services.contract.usage import Account, Ledger, day_of

_OVERWRITE = 2
"""HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD"""

RETRY_SECONDS = 1
"""When a client that was refused for contention may come back."""

_CheckRequest = message_class("envoy.service.auth.v3.CheckRequest")
_CheckResponse = message_class("envoy.service.auth.v3.CheckResponse")
_LogMessage = message_class("envoy.service.accesslog.v3.StreamAccessLogsMessage")
_LogResponse = message_class("envoy.service.accesslog.v3.StreamAccessLogsResponse")

_ALLOWED: bytes = _CheckResponse().SerializeToString()
_ENDED: bytes = _LogResponse().SerializeToString()
_COUNTED_OUT = (401, 403, 429)
"""Refusals that only `check` gives, and only without a permit; a 503 may also be Envoy's own, after a permit was taken."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "server_error"}


class FrontDoor:
    """Answers Envoy."""

    def __init__(
        self,
        limiter: ConcurrencyLimiter,
        terms: TermsCache,
        rights: Rights,
        ledger: Ledger,
        decisions: Decisions,
        stopping: asyncio.Event,
    ) -> None:
        self._limiter = limiter
        self._terms = terms
        self._rights = rights
        self._ledger = ledger
        self._decisions = decisions
        self._stopping = stopping
        self._estimators = settlement.TokenEstimators()
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
        """May a request go on? Only with a token that still counts, to a model that its contracts include, and as many at the same time as
        they allow."""
        attributes = request.attributes
        claims = _fields(attributes.metadata_context, CLAIMS_METADATA, "claims")
        if "sub" not in claims:
            return _ALLOWED
        http = attributes.request.http
        model = _target(http.headers)
        try:
            identity = _identity(claims)
            await self._rights.settle(identity)
            present = self._rights.of(identity)
            ids = dict.fromkeys((present.contract_id, present.user_contract_id))
            terms = {each: await self._terms.get(each) for each in ids if each}
        except MeshError as error:
            # To let pass what nothing is known of would be to have no limits while something is away.
            return _refusal(401 if error.code is grpc.StatusCode.UNAUTHENTICATED else 503, error, attributes)
        if not model:
            return _listing(inference_scopes(present.scopes, terms.values()))
        limits = {}
        for contract_id, each in terms.items():
            if each is None:
                return self._refuse(403, not_found(contract_id), claims, attributes)
            if not each.allows(model):
                return self._refuse(403, _not_included(contract_id, model), claims, attributes)
            if each.max_concurrent_requests:
                limits[contract_id] = each.max_concurrent_requests
        permit_id = _permit_id(claims, http.headers.get("x-request-id") or http.id)
        full = self._limiter.acquire(limits, permit_id) if limits else None
        if full is not None:
            exceeded = MeshError(
                Reason.ERROR_REASON_CONCURRENCY_EXCEEDED,
                f"contract {full} allows {limits[full]} requests at the same time, and as many are running",
                {"contractId": full, "limit": str(limits[full])},
                retry_after=RETRY_SECONDS,
            )
            return self._refuse(429, exceeded, claims, attributes)
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
                    self._limiter.release_all()

    def ended(self, entry: Any) -> None:
        """Settle one request that has ended."""
        common = entry.common_properties
        status = entry.response.response_code.value
        if status in _COUNTED_OUT and common.response_flags.HasField("unauthorized_details"):
            return  # refused by `check`: it holds no permit, though its id may be that of another which does
        claims = _fields(common.metadata, CLAIMS_METADATA, "claims")
        target = _target(entry.request.request_headers)[:256]
        if not target:
            return  # a list of models was read, which took no permit
        self._limiter.release(_permit_id(claims, entry.request.request_id))
        used = settlement.tokens_used(entry, target, self._estimators)
        if used is None:
            return
        account = Account(
            day_of(common.start_time.seconds),
            claims["sub"].string_value[:128] if "sub" in claims else "",
            target,
            claims["contract"].string_value[:64] if "contract" in claims else "",
            claims["uid"].string_value[:64] if "uid" in claims else "",
        )
        self._ledger.add(account, used)

    def _refuse(self, status: int, error: MeshError, claims: Any, attributes: Any) -> bytes:
        metadata = {key: str(value) for key, value in error.metadata.items()}
        refusal = Refusal(name_of(error.reason), error.message, error.remedy, metadata)
        subject = claims["sub"].string_value if "sub" in claims else ""
        contract_id = metadata.get("contractId", "")
        target = _target(attributes.request.http.headers)
        self._decisions.note(Decision(subject, "infer", target, contract_id, [refusal]))
        log.info("refused", subject=subject, contract_id=contract_id, reason=refusal.reason)
        return _refusal(status, error, attributes)


def _refusal(status: int, error: MeshError, attributes: Any) -> bytes:
    response = _CheckResponse()
    response.status.code = error.code.value[0]
    denied = response.denied_response
    denied.status.code = status
    message = f"{error.message}. {error.remedy}"
    code = name_of(error.reason).lower()
    if status == 401:
        # As Envoy words it about tokens that it refuses itself.
        message, code = f"{error.message[0].upper()}{error.message[1:]}.", "invalid_api_key"
    denied.body = json.dumps(error_body(attributes.request.http.path, status, message, _TYPES[status], code))
    headers = {"content-type": "application/json"}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    for key, value in headers.items():
        header = denied.headers.add().header
        header.key, header.value = key, value
    serialised: bytes = response.SerializeToString()
    return serialised


def _listing(scopes: Sequence[str]) -> bytes:
    """A list of models goes on, counts against nothing, and shows what the caller may use: the waker is told so as route.lua tells it."""
    response = _CheckResponse()
    changed = response.ok_response.headers.add()
    changed.header.key, changed.header.value = (
        SCOPES_HEADER,
        ",".join(quote(scope, safe="._:/@+*-") for scope in scopes),
    )
    changed.append_action = _OVERWRITE
    serialised: bytes = response.SerializeToString()
    return serialised


def _not_included(contract_id: str, model: str) -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_SCOPE_MISSING,
        f"contract {contract_id} does not include {model}",
        {"scope": f"{INFER}{model}", "contractId": contract_id},
    )


def _identity(claims: Any) -> Identity:
    """Who asks, from the verified payload of a token."""

    def text(name: str) -> str:
        return str(claims[name].string_value) if name in claims else ""

    scopes = claims["scopes"].list_value.values if "scopes" in claims else ()
    return Identity(
        subject=text("sub"),
        scopes=frozenset(scope.string_value for scope in scopes),
        contract_id=text("contract"),
        token_id=text("jti"),
        uid=text("uid"),
        issued=claims["iat"].number_value if "iat" in claims else 0.0,
        standing=int(claims["standing"].number_value) if "standing" in claims else 0,
    )


def _permit_id(claims: Any, request_id: str) -> str:
    """A client may choose its request's id; whatever it chooses, it frees no place but its own token's."""
    token_id = claims["jti"].string_value if "jti" in claims else ""
    return f"{token_id} {request_id}"


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
    cluster = str(headers.get(CLUSTER_HEADER, ""))
    return model_of(cluster) or server_of(cluster) or ""


_as_it_is: Callable[[bytes], bytes] = bytes
"""The serialiser of handlers that answer in bytes."""
