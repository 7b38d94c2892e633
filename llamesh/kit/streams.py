"""Ends open streams of a process before their handler does: at a drain, or when the caller's rights end.

Handlers yield responses, and gRPC sends each one. `allowed` is between the two: it passes responses on until an event reports a
change and the check then raises. This is how a drain ends streams (their readers connect to the next process), and how the end of a
caller's rights does.

Invariant: a stream ends with the status of the cause, never by cancelling its task: if a task is cancelled while gRPC sends, the reader
gets no status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from llamesh.kit.errors import MeshError, Reason, refuse

T = TypeVar("T")

MAX_WAIT = 3600.0
"""Seconds that a stream waits before it reads the clock again: clocks are set, and machines sleep."""


class Streams:
    """Whether the streams of one process may continue."""

    def __init__(self) -> None:
        self.drained = asyncio.Event()
        """Set when the drain begins."""

    def drain(self) -> None:
        """End all open streams and every stream that begins later."""
        self.drained.set()

    def check(self) -> None:
        """Raise COMPONENT_UNAVAILABLE after the drain has begun."""
        if self.drained.is_set():
            raise restarting()

    def ending(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap a bidirectional-streaming handler (Envoy's xDS) so that a drain ends its stream with UNAVAILABLE."""
        behaviour: Callable[[Any, Any], AsyncGenerator[Any, None]] = handler.stream_stream

        async def serve(
            requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                async with (
                    aclosing(behaviour(requests, context)) as made,
                    aclosing(allowed(made, lambda: (self.drained,), self.check)) as responses,
                ):
                    async for response in responses:
                        yield response
            except MeshError as error:
                await refuse(context, error)

        return grpc.stream_stream_rpc_method_handler(serve, handler.request_deserializer, handler.response_serializer)


async def allowed(
    responses: AsyncGenerator[T, None],
    changed: Callable[[], Collection[asyncio.Event]],
    check: Callable[[], None],
    seconds_left: Callable[[], float] = lambda: MAX_WAIT,
) -> AsyncGenerator[T, None]:
    """Yield responses as they come, until `check` raises.

    It is called before each response, whenever one of the events that `changed` returns is set, and when `seconds_left` returns 0.
    """
    following: asyncio.Future[T] | None = None
    alarms: list[asyncio.Future[Any]] = []
    try:
        while True:
            # Get the events of the next change before checking, so that no change is missed in between.
            alarms = alarms or [asyncio.ensure_future(event.wait()) for event in changed()]
            check()
            following = following or asyncio.ensure_future(anext(responses))
            timeout = max(0.0, min(seconds_left(), MAX_WAIT))
            await asyncio.wait({following, *alarms}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if any(alarm.done() for alarm in alarms):
                await _cancelled(alarms)
                alarms = []
                continue
            if not following.done():
                continue
            try:
                response = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield response
    finally:
        await _cancelled([*([following] if following else []), *alarms])


async def _cancelled(futures: Collection[asyncio.Future[Any]]) -> None:
    """Cancel futures, and wait until they have ended."""
    for each in futures:
        each.cancel()
    await asyncio.gather(*futures, return_exceptions=True)


def restarting() -> MeshError:
    """Return the error that ends a stream when its process drains."""
    return MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        "the service is being restarted",
        {"component": "service"},
        retry_after=1,
    )
