"""The one place every call passes: identity, validation, errors, deadline and the canonical log line.

What a method demands stands in its contract (options.proto `access`, protovalidate rules) and is read from the descriptor once.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError, Message

from llamesh.kit.errors import MeshError, Reason, invalid_field, refuse
from llamesh.kit.finishing import finished
from llamesh.kit.identity import CLAIMS_HEADER, Identity, current_identity, read_claims
from llamesh.kit.logs import log
from llamesh.kit.rights import Rights
from llamesh.kit.streams import Streams, allowed, restarting
from llamesh.kit.validation import validate
from llamesh.v1 import options_pb2

REQUEST_ID_HEADER = "x-request-id"
CONDITION_HEADER = "if-match"
FRONT_DOOR_HEADER = "x-forwarded-proto"
"""Envoy sets it on every request that it lets in; siblings, who call each other directly, never do."""

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""Id of the request that is being served, as Envoy made it."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """A method as its contract has it."""

    name: str
    """As on the wire, for instance "/llamesh.v1.GatewayService/Serve"."""
    access: options_pb2.Access | None
    """What it demands; None for a method that no contract of the mesh has."""
    quiet: bool
    """Whether success is worth no line: members and probes read the mesh's state all the time."""
    reads: bool = False
    """Whether it changes nothing: such a call ends with its caller, any other is finished first."""

    keeps_conditions: bool = True
    """Whether its request has an etag, which If-Match stands for; where it has none, a condition is refused."""

    @property
    def demands(self) -> bool:
        """Whether it demands anything of its caller."""
        return self.access is not None and not (self.access.anonymous or self.access.internal)


def method_of(name: str) -> Method:
    """Look a method up in its contract."""
    try:
        found = descriptor_pool.Default().FindMethodByName(name.strip("/").replace("/", "."))
    except KeyError:
        return Method(name, None, quiet=False)
    options = found.GetOptions()
    access = options.Extensions[options_pb2.access]
    reads = options.idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    quiet = reads and (access.internal or access.anonymous)
    return Method(name, access, quiet, reads, keeps_conditions="etag" in found.input_type.fields_by_name)


def authorise(
    access: options_pb2.Access | None,
    claims: str | None,
    *,
    from_outside: bool = False,
    rights: Rights | None = None,
) -> Identity | None:
    """Say who calls; UNAUTHENTICATED or SCOPE_MISSING where the contract demands more than the caller may do now.

    `from_outside`: the call came through Envoy, which must never route an internal method; if it does, it ends here.
    `rights`: what callers may do now; None where no method is open to them.
    """
    if access is not None and access.internal and from_outside:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "this call is for members of the mesh only")
    identity = read_claims(claims) if claims else None
    if access is None or access.anonymous or access.internal:
        return identity
    if identity is None:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "this call needs a token")
    present = rights.of(identity) if rights else identity
    if access.scope and not present.has(access.scope):
        lost = (
            f"{identity.subject} no longer has"
            if identity.has(access.scope)
            else f"the token of {identity.subject} lacks"
        )
        raise MeshError(
            Reason.ERROR_REASON_SCOPE_MISSING, f"{lost} the scope {access.scope!r}", {"scope": access.scope}
        )
    return present


class _Call:
    """One call while it is served."""

    def __init__(self, method: Method, context: Context, rights: Rights | None) -> None:
        self.method = method
        self.context = context
        self.started = time.perf_counter()
        metadata = dict(context.invocation_metadata() or ())
        self.request_id = cast("str", metadata.get(REQUEST_ID_HEADER)) or uuid.uuid4().hex
        current_request_id.set(self.request_id)
        self.refusal: MeshError | None = None
        self.identity: Identity | None = None
        self._claims = cast("str | None", metadata.get(CLAIMS_HEADER))
        self._from_outside = FRONT_DOOR_HEADER in metadata
        self._conditional = CONDITION_HEADER in metadata
        self._rights = rights
        self._seen = 0

    async def identify(self) -> None:
        """Find out who calls, before anything else is done for the call."""
        try:
            if self._rights and self._claims and self.method.demands:
                await self._rights.settle(read_claims(self._claims))
            self._authorise()
        except MeshError as error:
            self.refusal = error
        current_identity.set(self.identity)

    def still(self) -> None:
        """Refuse to go on where the caller's rights have ended since the call began."""
        if self._rights and self._rights.version != self._seen:
            self._authorise()

    def lasting(self, responses: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Responses for as long as the caller may have them: they end with its rights, whether or not there is anything to send."""
        return (
            allowed(responses, self._rights.changed, self.still) if self._rights and self.method.demands else responses
        )

    def _authorise(self) -> None:
        self._seen = self._rights.version if self._rights else 0
        self.identity = authorise(
            self.method.access, self._claims, from_outside=self._from_outside, rights=self._rights
        )

    def check(self, request: Message | None) -> None:
        if self.refusal:
            raise self.refusal
        if request is None:
            raise MeshError(
                Reason.ERROR_REASON_INVALID_FIELD,
                "the request cannot be read: a text in it is no UTF-8, or its bytes are damaged",
            )
        if self._conditional and not self.method.keeps_conditions:
            raise invalid_field("If-Match", "this call has no etag and cannot keep the condition: send it without")
        validate(request)

    async def fail(self, error: BaseException) -> None:
        """End the call with the status of an error; what is not a MeshError is our fault and shows nothing of itself."""
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
        self.line(mesh_error.code.name, error=str(mesh_error))
        await refuse(self.context, mesh_error)

    def line(self, code: str, **extra: object) -> None:
        """Write the canonical line."""
        write = log.debug if self.method.quiet and code == "OK" else log.info
        write(
            "call",
            method=self.method.name,
            code=code,
            ms=round((time.perf_counter() - self.started) * 1000, 2),
            request_id=self.request_id,
            subject=self.identity.subject if self.identity else None,
            **extra,
        )


class MeshInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each method once; see the module."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.rights: Rights | None = None
        """What callers may do now; None in a process whose methods are all internal."""
        self.waits_for = ""
        """Component without which the process is not ready: calls that nobody answers yet are UNAVAILABLE, not unknown."""
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
                return _refusing(_not_ready(self.waits_for) if self.waits_for else _unknown(method))
            if not method.startswith("/llamesh."):
                return self.streams.ending(handler) if handler.stream_stream else handler
            found = self._wrapped[method] = _wrap(method, handler, self)
        return found


def _unknown(method: str) -> MeshError:
    call = method.strip("/")[:200]
    return MeshError(
        Reason.ERROR_REASON_NOT_IMPLEMENTED,
        f"there is no call {call}: server reflection lists those that are",
        {"call": call},
    )


def _not_ready(component: str) -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        f"the {component} is not ready: this service waits for it",
        {"component": component},
        retry_after=1,
    )


def _refusing(error: MeshError) -> grpc.RpcMethodHandler[Any, Any]:
    """What answers a call of whatever kind with an error, before anything of it is read."""

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
    """Reads a request; None for bytes that are no such message, so that the call is refused like any other."""
    decode = cast("Callable[[bytes], Message]", handler.request_deserializer)

    def read(data: bytes) -> Message | None:
        try:
            return decode(data)
        except DecodeError:
            return None

    return read


def _unary(
    method: Method, behaviour: Callable[[Any, Context], Awaitable[Any]], calls: MeshInterceptor
) -> Callable[[Message | None, Context], Awaitable[Any]]:
    async def serve(request: Message | None, context: Context) -> Any:
        call = _Call(method, context, calls.rights)
        try:
            await call.identify()
            call.check(request)
            work = behaviour(request, context)
            response = await (work if method.reads else finished(work))
        except asyncio.CancelledError:
            call.line("CANCELLED")
            raise
        except grpc.aio.AbortError:
            call.line("ABORTED BY HANDLER")
            raise
        except Exception as error:
            await call.fail(error)
            raise
        call.line("OK")
        return response

    return serve


def _stream(
    method: Method,
    behaviour: Callable[[Any, Context], AsyncGenerator[Any, None]],
    calls: MeshInterceptor,
) -> Callable[[Message | None, Context], AsyncIterator[Any]]:
    streams = calls.streams

    async def serve(request: Message | None, context: Context) -> AsyncIterator[Any]:
        call = _Call(method, context, calls.rights)
        try:
            await call.identify()
            call.check(request)
            if streams.draining:
                raise restarting()
            # Closed here and not whenever it is collected: what it holds is given back with the call.
            async with aclosing(behaviour(request, context)) as made, aclosing(call.lasting(made)) as responses:
                with streams.open():
                    async for response in responses:
                        yield response
        except (asyncio.CancelledError, GeneratorExit) as error:
            if streams.draining and isinstance(error, asyncio.CancelledError):
                await call.fail(restarting())
            call.line("CANCELLED")
            raise
        except grpc.aio.AbortError:
            call.line("ABORTED BY HANDLER")
            raise
        except Exception as error:
            await call.fail(error)
            raise
        call.line("OK")

    return serve
