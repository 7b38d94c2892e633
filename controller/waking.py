"""Whether a held request may go on, must wait or is to be refused: what the waker decides, without HTTP.

A request is held for a server ("s:{uuid}") or for a model name ("m:{name}"). Of several servers with the name one is enough.

Invariant: a request is let go only when Envoy has acknowledged an engine that it can reach; each held request ends within its budget.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from controller.board import Board
from controller.status import is_going, why_not_ready
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.logs import log
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server

DEFAULT_BUDGET = 120.0
"""Seconds that a request may wait where the server does not say."""
MOST_HELD = 4096
"""Requests held at the same time, for all servers together."""
_ASLEEP = (server_pb2.SERVER_STATE_SLEEPING, server_pb2.SERVER_STATE_STOPPING)


@dataclass(frozen=True, slots=True)
class Awake:
    """An engine is there: try again now."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No such server or model is declared, or not any more."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No engine in time."""

    message: str
    retry_after: int
    """Seconds."""


@dataclass(frozen=True, slots=True)
class TooMany:
    """More requests are held than may be."""


Verdict = Awake | Unknown | Refused | TooMany


class Waking:
    """Holds requests and wakes servers."""

    def __init__(
        self,
        board: Board,
        wake: Callable[[str], Awaitable[None]],
        touch: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        most_held: int = MOST_HELD,
    ) -> None:
        """`wake(server_uuid)` lets its engines start; `touch(server_uuid)` notes that it has work."""
        self.held = 0
        """Requests that wait now."""
        self._board = board
        self._wake = wake
        self._touch = touch
        self._clock = clock
        self._most_held = most_held
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def hold(self, cluster: str, waited: float = 0.0) -> Verdict:
        """Wait until a request for this cluster may go on. Cancelled where the client has gone.

        `waited`: seconds of the budget that are spent, because it was held by a controller that died.
        """
        if self.held >= self._most_held:
            return TooMany()
        self.held += 1
        try:
            return await self._hold(cluster, waited)
        finally:
            self.held -= 1

    async def _hold(self, cluster: str, waited: float) -> Verdict:
        first = self._candidates(cluster)
        if not first:
            return Unknown()
        deadline = self._clock() + max(_budget(server) for server in first) - waited
        with self._board.listen(server.server_uuid for server in first) as changed:
            while True:
                changed.clear()
                candidates = self._candidates(cluster)
                verdict = self._verdict(candidates)
                if verdict is not None:
                    return verdict
                await self._wake_one(candidates)
                left = deadline - self._clock()
                try:
                    async with asyncio.timeout(left):
                        await changed.wait()
                except TimeoutError:
                    return Refused(f"No engine was ready in time: {_reason(candidates)}.", 1)

    def _candidates(self, cluster: str) -> Sequence[Server]:
        kind, _, name = cluster.partition(":")
        if kind == "m":
            return [server for server in self._board.named(name) if not is_going(server)]
        server = self._board.get(name) if kind == "s" else None
        return [server] if server is not None and not is_going(server) else []

    def _verdict(self, candidates: Sequence[Server]) -> Verdict | None:
        if not candidates:
            return Unknown()
        for server in candidates:
            if server.ready_replicas:
                self._touch(server.server_uuid)
                return Awake()
        if all(server.state == server_pb2.SERVER_STATE_FAILING for server in candidates):
            return Refused(f"The engine does not start: {_reason(candidates)}.", 10)
        return None

    async def _wake_one(self, candidates: Sequence[Server]) -> None:
        """Wake a server, unless one of them is on its way already."""
        asleep = [server.server_uuid for server in candidates if server.state in _ASLEEP]
        failing = [server for server in candidates if server.state == server_pb2.SERVER_STATE_FAILING]
        if not asleep or len(asleep) + len(failing) < len(candidates):
            return
        name = asleep[0]
        if name not in self._under_way:
            self._under_way[name] = asyncio.create_task(self._wake_quietly(name))
        # Shielded: a client that leaves does not stop the waking that others wait for.
        await asyncio.shield(self._under_way[name])

    async def _wake_quietly(self, server_uuid: str) -> None:
        try:
            await self._wake(server_uuid)
        except MeshError as error:
            # Removed a moment ago: the board will say so.
            if error.reason != Reason.ERROR_REASON_SERVER_NOT_FOUND:
                log.warning("cannot wake", server=server_uuid, error=str(error))
        except Exception as error:
            # Held requests wait on; the next one tries again.
            log.error("cannot wake", server=server_uuid, exc_info=error)
        finally:
            del self._under_way[server_uuid]


def _budget(server: Server) -> float:
    return server.spec.wake_budget.ToMilliseconds() / 1000 or DEFAULT_BUDGET


def _reason(candidates: Sequence[Server]) -> str:
    return why_not_ready(candidates[0]) or "it is being started"
