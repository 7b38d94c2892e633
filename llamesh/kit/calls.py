"""The interceptor that every call passes: identity, validation, errors, and one canonical log line for each call.

gRPC asks `MeshInterceptor` for the handler of a method. At the first call of a method its handler is wrapped, once. The wrapper creates a
`_Call`, which identifies the caller, checks rights and the request, runs the handler, and logs the result of the call. A drain, and the end
of the caller's rights, end open streams (`streams.py`).

Invariant: a handler runs only after its caller was authorised and its request validated. Callers see a MeshError; every other failure is
shown to them as an internal error with a request id.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Self, cast

import grpc
from google.protobuf.message import DecodeError, Message

from llamesh.kit.completion import to_completion
from llamesh.kit.errors import MeshError, Reason, component_not_ready, invalid_field, refuse
from llamesh.kit.identity import Identity, current_identity, read_claims
from llamesh.kit.logs import log
from llamesh.kit.methods import RpcMethod, authorise, method_of
from llamesh.kit.peers import Peers
from llamesh.kit.rights import Rights
from llamesh.kit.streams import Streams, allowed
from llamesh.kit.validation import validate
from llamesh.names import CLAIMS_HEADER

REQUEST_ID_HEADER = "x-request-id"
CONDITION_HEADER = "if-match"
FRONT_DOOR_HEADER = "x-forwarded-proto"
"""Header that Envoy sets on every request it forwards. Services call each other directly and never set it."""

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""Id of the request that is being served; Envoy makes it."""

Context = grpc.aio.ServicerContext[Any, Any]


class _Call:
    """One call from its start to its log line. As a context manager it turns an error of the handler into the call's status."""

    def __init__(self, method: RpcMethod, context: Context, calls: MeshInterceptor) -> None:
        self.method = method
        self.context = context
        self.started = time.perf_counter()
        metadata = dict(context.invocation_metadata() or ())
        self.request_id = cast("str", metadata.get(REQUEST_ID_HEADER)) or uuid.uuid4().hex
        current_request_id.set(self.request_id)
        self.refusal: MeshError | None = None
        self.identity: Identity | None = None
        self._target: dict[str, object] = {}
        """What the call is about; empty until the request was validated, so that its values have the form of the contract."""
        self._claims = cast("str | None", metadata.get(CLAIMS_HEADER))
        self._from_outside = FRONT_DOOR_HEADER in metadata
        self._conditional = CONDITION_HEADER in metadata
        self._rights = calls.rights
        self._observe = calls.observe
        self._seen = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        match error:
            case None:
                self.log_end("OK")
            case asyncio.CancelledError() | GeneratorExit():
                self.log_end("CANCELLED")
            case grpc.aio.AbortError():
                self.log_end("ABORTED BY HANDLER")
            case Exception():
                await self.fail(error)

    async def identify(self) -> None:
        """Identify the caller. This comes first, so that the log line of a refused call names its caller."""
        try:
            if self._rights and self._claims and self.method.demands:
                await self._rights.until_known(read_claims(self._claims))
            self._authorise()
        except MeshError as error:
            self.refusal = error
        current_identity.set(self.identity)

    def check_rights(self) -> None:
        """Raise if the caller's rights have ended since they were last checked."""
        if self._rights and (self._rights.version != self._seen or self._seconds_left() <= 0):
            self._authorise()

    def while_allowed(self, responses: AsyncGenerator[Any, None], streams: Streams) -> AsyncGenerator[Any, None]:
        """Return the responses, ended by a drain or as soon as the caller's rights end, even while there is nothing to send."""
        rights = self._rights if self.method.demands else None

        def changed() -> list[asyncio.Event]:
            return [streams.drained, *([rights.changed()] if rights else [])]

        def check() -> None:
            streams.check()
            if rights:
                self.check_rights()

        return allowed(responses, changed, check, self._seconds_left if rights else lambda: math.inf)

    def _seconds_left(self) -> float:
        """Return the seconds until the caller's token expires."""
        return self._rights.seconds_left(self.identity) if self._rights and self.identity else math.inf

    def _authorise(self) -> None:
        self._seen = self._rights.version if self._rights else 0
        self.identity = authorise(
            self.method.access, self._claims, from_outside=self._from_outside, rights=self._rights
        )

    def check(self, request: Message | None) -> None:
        """Raise the refusal that `identify` found, or the error of an invalid request."""
        if self.refusal:
            raise self.refusal
        if request is None:
            raise MeshError(
                Reason.ERROR_REASON_INVALID_FIELD,
                "the request cannot be read: a text in it is not UTF-8, or its bytes are damaged",
            )
        if self._conditional and not self.method.has_etag:
            raise invalid_field("If-Match", "this call has no etag to compare it with: send the call without If-Match")
        validate(request)
        self._target = {name: getattr(request, name) for name in self.method.target}

    async def fail(self, error: BaseException) -> None:
        """End the call with the status of an error. An error that is not a MeshError is a bug: callers see only the request id."""
        if isinstance(error, MeshError):
            mesh_error = error
        elif isinstance(error, NotImplementedError):
            call = self.method.name.strip("/")
            mesh_error = MeshError(
                Reason.ERROR_REASON_NOT_IMPLEMENTED, f"{call} is not in this release", {"call": call}
            )
        else:
            log.error("call failed", method=self.method.name, request_id=self.request_id, exc_info=error)
            mesh_error = MeshError(
                Reason.ERROR_REASON_INTERNAL,
                f"internal error; request id {self.request_id}",
                {"requestId": self.request_id},
            )
        self.log_end(mesh_error.code.name, error=str(mesh_error))
        await refuse(self.context, mesh_error)

    def log_end(self, code: str, **extra: object) -> None:
        """Write the call's log line, and count the call."""
        seconds = time.perf_counter() - self.started
        self._observe(self.method.name, code, seconds)
        write = log.debug if self.method.quiet and code == "OK" else log.info
        write(
            "call",
            method=self.method.name,
            code=code,
            ms=round(seconds * 1000, 2),
            request_id=self.request_id,
            subject=self.identity.subject if self.identity else None,
            **self._target,
            **extra,
        )


class MeshInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of each method at its first call; see the module."""

    def __init__(self, observe: Callable[[str, str, float], None], peers: Peers | None = None) -> None:
        """`observe` gets the method, code and seconds of each call that ends. `peers` checks callers over TCP, if there are any."""
        self.observe = observe
        self._peers = peers
        self.streams = Streams()
        self.rights: Rights | None = None
        """Present rights of all callers; None in a process whose methods are all internal."""
        self.waits_for = ""
        """Component that this process waits for before it can serve. Until then, methods without a handler are UNAVAILABLE, not unknown."""
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the wrapped handler of the method that is called."""
        method = handler_call_details.method
        found = self._wrapped.get(method)
        if found is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return _refusing(component_not_ready(self.waits_for) if self.waits_for else _unknown(method))
            if not method.startswith("/llamesh."):
                return self._guarded(method, self.streams.ending(handler) if handler.stream_stream else handler)
            found = self._wrapped[method] = self._guarded(method, _wrap(method, handler, self))
        return found

    def _guarded(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        return self._peers.guard(method, handler) if self._peers else handler


def _unknown(method: str) -> MeshError:
    call = method.strip("/")[:200]
    return MeshError(
        Reason.ERROR_REASON_NOT_IMPLEMENTED,
        f"there is no call {call}: server reflection lists those that are",
        {"call": call},
    )


def _refusing(error: MeshError) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler that ends any kind of call with an error before it reads a request."""

    async def answer(_requests: object, context: Context) -> None:
        await refuse(context, error)

    return grpc.stream_stream_rpc_method_handler(answer)


def _wrap(method: str, handler: Any, calls: MeshInterceptor) -> grpc.RpcMethodHandler[Any, Any]:
    known = method_of(method)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(
            _unary(known, handler.unary_unary, calls), _decoder(handler), handler.response_serializer
        )
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(
            _stream(known, handler.unary_stream, calls), _decoder(handler), handler.response_serializer
        )
    raise TypeError(f"{method}: contracts of the mesh have no client streams")


def _decoder(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[[bytes], Message | None]:
    """Return a decoder that returns None for bytes that are not such a message, so that `check` refuses them with a typed error."""
    decode = cast("Callable[[bytes], Message]", handler.request_deserializer)

    def read(data: bytes) -> Message | None:
        try:
            return decode(data)
        except DecodeError:
            return None

    return read


def _unary(
    method: RpcMethod, behaviour: Callable[[Any, Context], Awaitable[Any]], calls: MeshInterceptor
) -> Callable[[Message | None, Context], Awaitable[Any]]:
    async def serve(request: Message | None, context: Context) -> Any:
        async with _Call(method, context, calls) as call:
            await call.identify()
            call.check(request)
            work = behaviour(request, context)
            return await (work if method.is_read_only else to_completion(work))

    return serve


def _stream(
    method: RpcMethod,
    behaviour: Callable[[Any, Context], AsyncGenerator[Any, None]],
    calls: MeshInterceptor,
) -> Callable[[Message | None, Context], AsyncIterator[Any]]:
    async def serve(request: Message | None, context: Context) -> AsyncIterator[Any]:
        async with _Call(method, context, calls) as call:
            await call.identify()
            call.check(request)
            calls.streams.check()
            # Close the generators now, not when they are collected: they hold resources that belong to this call.
            async with (
                aclosing(behaviour(request, context)) as made,
                aclosing(call.while_allowed(made, calls.streams)) as responses,
            ):
                async for response in responses:
                    yield response

    return serve
