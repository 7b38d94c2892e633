"""Checks the certificate of each caller over TCP before its call is looked at.

gRPC makes the TLS handshake and lets nobody in without a certificate of the mesh's authorities that is valid then. This module reads from
it which member calls, and refuses what `member_calls` does not list. Connections outlive certificates, so it also reads the end of the
certificate: a connection that was made with a certificate that has expired carries no new call.

Invariant: on TCP, no handler runs and no header is read before this check. Callers on the Unix socket are this machine's own members.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import lru_cache
from inspect import isasyncgenfunction
from typing import Any

import grpc

from llamesh.kit.errors import MeshError, Reason, refuse
from llamesh.kit.logs import log
from llamesh.kit.member_calls import FORWARDERS, may_call
from llamesh.member_certificates import end_of, identity
from llamesh.names import CLAIMS_HEADER

Context = grpc.aio.ServicerContext[Any, Any]

_UNIX = "unix:"
_NEVER = datetime.max.replace(tzinfo=UTC)


class Peers:
    """Decides about the callers of one member."""

    def __init__(self, domain: str, clock: Callable[[], datetime]) -> None:
        self._prefix = identity(domain, "")
        self._clock = clock

    def check(self, method: str, context: Context) -> None:
        """Raise MeshError unless the caller may call the method."""
        shown = context.auth_context()
        if shown.get("transport_security_type") != [b"ssl"] and context.peer().startswith(_UNIX):
            return
        caller = self._member(shown)
        call = method.strip("/")
        if not may_call(caller, method):
            raise _refused(caller, call, f"the member {caller} may not call {call}")
        if caller not in FORWARDERS and any(key == CLAIMS_HEADER for key, _ in context.invocation_metadata() or ()):
            raise _refused(caller, call, f"the member {caller} may not forward a caller's identity")

    def _member(self, shown: Any) -> str:
        """Return the name of the member whose certificate was shown."""
        uris = shown.get("peer_uri", ())
        # Two identities in one certificate are none.
        found = uris[0].decode(errors="replace") if len(uris) == 1 else ""
        member = found.removeprefix(self._prefix)
        if not found.startswith(self._prefix) or "/" in member:
            raise _unknown(found, "the caller's certificate names no member of this mesh")
        if self._clock() > _end(b"".join(shown.get("x509_pem_cert", ()))):
            raise _unknown(found, "the caller's certificate has expired since the connection was made")
        return member

    def guard(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method with the check before it."""
        behaviour = handler.unary_unary or handler.stream_unary or handler.unary_stream or handler.stream_stream
        generates = isasyncgenfunction(behaviour)
        return _guarded(handler, (self._streamed if generates else self._single)(method, behaviour))

    def _single(self, method: str, behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        """Guard a handler that returns a response, or that writes a stream itself, as that of health does."""

        async def serve(request: Any, context: Context) -> Any:
            await self._admit(method, context)
            return await behaviour(request, context)

        return serve

    def _streamed(self, method: str, behaviour: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Any:
        async def serve(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._admit(method, context)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return serve

    async def _admit(self, method: str, context: Context) -> None:
        try:
            self.check(method, context)
        except MeshError as error:
            log.warning("refused a member", method=method, peer=context.peer(), error=str(error))
            await refuse(context, error)


def _guarded(handler: Any, serve: Any) -> grpc.RpcMethodHandler[Any, Any]:
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(serve, handler.request_deserializer, handler.response_serializer)


@lru_cache(maxsize=256)
def _end(certificate: bytes) -> datetime:
    try:
        return end_of(certificate)
    except ValueError:
        return _NEVER.replace(year=1)


def _unknown(shown: str, words: str) -> MeshError:
    return MeshError(Reason.ERROR_REASON_MEMBER_UNKNOWN, words, {"caller": shown})


def _refused(caller: str, call: str, words: str) -> MeshError:
    return MeshError(Reason.ERROR_REASON_MEMBER_REFUSED, words, {"caller": caller, "call": call})
