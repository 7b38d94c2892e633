"""Open streams of a process, which a drain ends: their readers reconnect to the next process.

Each streaming handler registers its task in `Streams` while it serves (`calls.py` for the mesh's own methods, `ending` for Envoy's xDS).
`Member` calls `drain`, which cancels these tasks.

Invariant: a stream that a drain ends has the status UNAVAILABLE, so no reader takes it for complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import grpc

from llamesh.kit.errors import MeshError, Reason, refuse

T = TypeVar("T")

LONGEST_WAIT = 3600.0
"""Seconds that a stream waits before it looks at the clock again: clocks are set, and machines sleep."""


class Streams:
    """All open streams of one process."""

    def __init__(self) -> None:
        self.draining = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Register the current task as a stream while it serves."""
        task = asyncio.current_task()
        assert task is not None, "a stream is served by a task"
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def drain(self) -> None:
        """End all open streams and every stream that begins later."""
        self.draining = True
        for task in self._tasks:
            task.cancel()

    def ending(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap a bidirectional-streaming handler (Envoy's xDS) so that a drain ends its stream with UNAVAILABLE."""
        behaviour: Callable[[Any, Any], AsyncGenerator[Any, None]] = handler.stream_stream

        async def serve(
            requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                async with aclosing(behaviour(requests, context)) as responses:
                    with self.open():
                        async for response in responses:
                            yield response
            except asyncio.CancelledError:
                if self.draining:
                    await refuse(context, restarting())
                raise

        return grpc.stream_stream_rpc_method_handler(serve, handler.request_deserializer, handler.response_serializer)


async def allowed(
    responses: AsyncGenerator[T, None],
    changed: Callable[[], asyncio.Event],
    still: Callable[[], None],
    seconds_left: Callable[[], float],
) -> AsyncGenerator[T, None]:
    """Yield responses as they come, until `still` raises.

    It is asked before each response, whenever the event that `changed` gives is set, and when `seconds_left` returns 0.
    """
    following: asyncio.Future[T] | None = None
    alarm: asyncio.Future[Any] | None = None
    try:
        while True:
            # Get the event of the next change before checking, so that no change is missed in between.
            alarm = alarm or asyncio.ensure_future(changed().wait())
            still()
            following = following or asyncio.ensure_future(anext(responses))
            timeout = max(0.0, min(seconds_left(), LONGEST_WAIT))
            await asyncio.wait({following, alarm}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if alarm.done():
                alarm = None
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
        left = [each for each in (following, alarm) if each is not None]
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def restarting() -> MeshError:
    """Return the error that ends a stream when its process drains."""
    return MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        "the service is being restarted",
        {"component": "service"},
        retry_after=1,
    )
