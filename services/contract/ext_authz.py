"""Envoy's external authorization protocol (ext_authz): may this request go on?

Envoy sends the request's headers and the verified token's claims, never its body, and applies the answer. `admission` decides; this module
decodes the question and encodes the answer.

Invariant: a refusal has the error format of the API that was called (OpenAI or Anthropic), because the client gets it unchanged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import grpc

from llamesh.kit.envoy_api import message_class
from llamesh.kit.errors import MeshError, name_of
from llamesh.kit.inference_errors import error_body
from llamesh.names import SCOPES_HEADER
from services.contract.admission import Admission
from services.contract.envoy_request import claims_of, envoy_of, identity_of, permit_id_of, target_of

_OVERWRITE = 2
"""HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD"""

_CheckRequest = message_class("envoy.service.auth.v3.CheckRequest")
_CheckResponse = message_class("envoy.service.auth.v3.CheckResponse")
_ALLOWED: bytes = _CheckResponse().SerializeToString()

_STATUS = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
}
"""HTTP status by the code of a refusal; 503 for all others. A contract that is not found is 403: the client asked for a model."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "server_error"}

_as_it_is: Callable[[bytes], bytes] = bytes
"""Serialiser of a handler that returns bytes."""


class ExtAuthz:
    """Answers envoy.service.auth.v3.Authorization."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service on a server."""
        check = grpc.unary_unary_rpc_method_handler(self.check, _CheckRequest.FromString, _as_it_is)
        service = "envoy.service.auth.v3.Authorization"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Check": check}),))

    async def check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """Allow or refuse one request. A request without a token is allowed: Envoy asks about it only at metered servers."""
        attributes = request.attributes
        claims = claims_of(attributes.metadata_context)
        if "sub" not in claims:
            return _ALLOWED
        http = attributes.request.http
        target = target_of(http.headers)
        try:
            if not target:
                return _listing(await self._admission.listing_scopes(identity_of(claims)))
            permit_id = permit_id_of(claims, http.headers.get("x-request-id") or http.id)
            await self._admission.admit(identity_of(claims), target, permit_id, envoy_of(context.peer()))
        except MeshError as error:
            return _refusal(error, http.path)
        return _ALLOWED


def _refusal(error: MeshError, path: str) -> bytes:
    response = _CheckResponse()
    response.status.code = error.code.value[0]
    denied = response.denied_response
    denied.status.code = status = _STATUS.get(error.code, 503)
    message = f"{error.message}. {error.remedy}"
    code = name_of(error.reason).lower()
    if status == 401:
        # The same words as Envoy's own refusal of a token.
        message, code = f"{error.message[0].upper()}{error.message[1:]}.", "invalid_api_key"
    denied.body = json.dumps(error_body(path, status, message, _TYPES[status], code))
    headers = {"content-type": "application/json"}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    for key, value in headers.items():
        header = denied.headers.add().header
        header.key, header.value = key, value
    serialised: bytes = response.SerializeToString()
    return serialised


def _listing(scopes: Sequence[str]) -> bytes:
    """Allow a list of models. The waker answers it and reads the caller's scopes from the header (envoy/lua/route.lua sets it too)."""
    response = _CheckResponse()
    changed = response.ok_response.headers.add()
    changed.header.key = SCOPES_HEADER
    changed.header.value = ",".join(quote(scope, safe="._:/@+*-") for scope in scopes)
    changed.append_action = _OVERWRITE
    serialised: bytes = response.SerializeToString()
    return serialised
