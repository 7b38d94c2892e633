"""Holds duplicates of the engines' listening sockets, so that connections in an engine's backlog outlive an engine that is killed.

An engine's own supervising process does the same for llama.cpp (engine/listener.py); this module covers the death of that process. A new
controller gets duplicates again from the engines that it adopts. A starting engine gets no requests before its duplicate is held.

Invariant: once the end of an engine was observed, no client can connect to it and every waiting connection is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from llamesh import listeners
from llamesh.kit.logs import log

_ASK_SECONDS = 0.1
"""Seconds after which a starting engine that cannot send its socket yet gets the next request for it."""
_PATIENCE_SECONDS = 60.0
"""Seconds that an engine's process may take to open its hand-over socket. The time until it is ready is not limited."""
_SETTLE_SECONDS = 5.0
"""Seconds for which a ready engine gets no requests while its duplicate is not held yet. Then it serves without one."""


class Backlogs:
    """Duplicates of listening sockets by engine."""

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def hold(self, instance: str, hand_over: Path) -> None:
        """Request a duplicate from an engine, which sends it once it listens."""
        self._asking[instance] = asyncio.create_task(self._ask(instance, hand_over))

    async def settled(self, instance: str) -> None:
        """Wait until the duplicate is held, the engine has none, or `_SETTLE_SECONDS` are over."""
        if asking := self._asking.get(instance):
            _, pending = await asyncio.wait([asking], timeout=_SETTLE_SECONDS)
            if pending:
                log.warning("the engine has not handed over its listening socket", instance=instance)

    def turn_away(self, instance: str) -> None:
        """Answer the connections that an ended engine has not accepted. Returns at once; idempotent."""
        if asking := self._asking.pop(instance, None):
            asking.cancel()
        if held := self._sockets.pop(instance, None):
            ending = asyncio.create_task(self._turn_away(instance, held))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Release all duplicates after pending answers are sent. The engines keep running."""
        for asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._asking.values(), *self._ending, return_exceptions=True)
        for held in self._sockets.values():
            held.close()
        self._asking.clear()
        self._sockets.clear()

    async def _turn_away(self, instance: str, held: socket.socket) -> None:
        if count := await listeners.turn_away(held):
            log.info("requests that the engine had not accepted are sent again", instance=instance, count=count)

    async def _ask(self, instance: str, hand_over: Path) -> None:
        while True:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    connection = await _connected(hand_over)
            except TimeoutError:
                log.debug("the engine opened no hand-over socket", instance=instance)
                return
            with connection:
                await listeners.readable(connection.fileno())
                try:
                    held = listeners.taken(connection)
                except OSError as error:
                    # This process lacks a resource, such as descriptors. The next request gets another duplicate.
                    log.warning("cannot take over a listening socket", instance=instance, error=str(error))
                else:
                    if held is not None:
                        self._sockets[instance] = held
                    return
            await asyncio.sleep(_ASK_SECONDS)


async def _connected(path: Path) -> socket.socket:
    while True:
        with contextlib.suppress(OSError):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.setblocking(False)
                connection.connect(str(path))
            except OSError:
                connection.close()
            else:
                return connection
        await asyncio.sleep(_ASK_SECONDS)
