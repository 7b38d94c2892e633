"""Holds requests for servers without a ready engine, starts the wakes of these servers, and decides when each request goes on.

A request is held for the cluster of a server or of a model name (llamesh.names). If several servers have the name, one is enough.

The waker awaits `hold` for each request. `hold` waits for changes of the candidates in the status cache and decides again after each
change: go on, wait or refuse. A request for a sleeping server starts its wake (`controller.wake_tasks`). A request is refused before its
budget ends only if waiting cannot help: the failure is permanent, or no start is running and the next one is due after the budget.

This module knows no HTTP.

Invariant: a request goes on only after Envoy has acknowledged an engine. Every held request ends within its budget.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from controller.demand import Demand
from controller.status_cache import StatusCache
from controller.status_reading import ready_reason, why_not_ready
from controller.wake_tasks import WakeTasks
from llamesh.names import model_of, server_of
from llamesh.server_conditions import is_being_removed
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server

DEFAULT_BUDGET = 120.0
"""Seconds that a request may be held if the server's spec has no budget."""
MAX_HELD = 4096
"""Maximum number of requests held at the same time, for all servers together."""
PERMANENT_FAILURES = frozenset({"BadModel", "BadSpec", "NoModel", "NoLlamaCpp", "ModelNotFound", "ModelCorrupt"})
"""Reasons of the Ready condition after which another start would fail in the same way, so that requests are refused at once."""
_ASLEEP = (server_pb2.SERVER_STATE_SLEEPING, server_pb2.SERVER_STATE_STOPPING)


@dataclass(frozen=True, slots=True)
class EngineReady:
    """An engine is ready: the request can be retried now."""


@dataclass(frozen=True, slots=True)
class UnknownTarget:
    """No such server or model is declared (any more)."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No engine will be ready within the budget."""

    message: str
    retry_after: int
    """Seconds."""


@dataclass(frozen=True, slots=True)
class TooManyHeld:
    """The limit of held requests is reached."""


HoldOutcome = EngineReady | UnknownTarget | Refused | TooManyHeld


class RequestHolder:
    """Holds requests, and starts the wakes of their servers."""

    def __init__(
        self,
        statuses: StatusCache,
        demand: Demand,
        wakes: WakeTasks,
        touch: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        max_held: int = MAX_HELD,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`demand` counts the held requests of each server, also for `wakes`; `touch(server_uuid)` records activity."""
        self.held = 0
        """Requests that wait now."""
        self._statuses = statuses
        self._wakes = wakes
        self._touch = touch
        self._clock = clock
        self._max_held = max_held
        self._demand = demand
        self._wall_clock = wall_clock
        self._waiting: set[asyncio.Event] = set()
        """Set to make held requests decide again."""
        self._ending = False

    def refuse_all(self) -> None:
        """Refuse all held and future requests: the mesh is stopping, so no engine will become ready."""
        self._ending = True
        for changed in self._waiting:
            changed.set()

    async def hold(self, cluster: str, waited: float = 0.0) -> HoldOutcome:
        """Wait until a request for this cluster may go on. Cancelled if the client has disconnected.

        `waited` is the part of the budget in seconds that the request spent in an earlier controller.
        """
        if self.held >= self._max_held:
            return TooManyHeld()
        self.held += 1
        try:
            return await self._hold(cluster, waited)
        finally:
            self.held -= 1

    async def _hold(self, cluster: str, waited: float) -> HoldOutcome:
        first = self._candidates(cluster)
        if not first:
            return UnknownTarget()
        deadline = self._clock() + max(_budget(server) for server in first) - waited
        names = [server.server_uuid for server in first]
        with self._statuses.listen(names) as changed, self._demand.held(names), self._released(changed):
            while True:
                changed.clear()
                candidates = self._candidates(cluster)
                left = deadline - self._clock()
                verdict = self._verdict(candidates, left)
                if verdict is not None:
                    return verdict
                self._wake_one(candidates)
                try:
                    async with asyncio.timeout(left):
                        await changed.wait()
                except TimeoutError:
                    return Refused(f"No engine was ready in time: {self._reason(candidates)}.", 1)

    @contextmanager
    def _released(self, changed: asyncio.Event) -> Iterator[None]:
        """Set this event on `refuse_all`, so that a waiting request is refused at once."""
        self._waiting.add(changed)
        try:
            yield
        finally:
            self._waiting.discard(changed)

    def _candidates(self, cluster: str) -> Sequence[Server]:
        if (name := model_of(cluster)) is not None:
            return [server for server in self._statuses.named(name) if not is_being_removed(server)]
        server_uuid = server_of(cluster)
        server = self._statuses.get(server_uuid) if server_uuid is not None else None
        return [server] if server is not None and not is_being_removed(server) else []

    def _verdict(self, candidates: Sequence[Server], left: float) -> HoldOutcome | None:
        """Decide a request that may wait `left` more seconds. Return None if it keeps waiting."""
        if not candidates:
            return UnknownTarget()
        for server in candidates:
            if server.ready_replicas:
                self._touch(server.server_uuid)
                return EngineReady()
        if self._ending:
            return Refused("The mesh is being stopped.", 10)
        waits = [next_start(server, self._wall_clock()) for server in candidates]
        if min(waits) <= max(left, 0.0):
            return None
        if math.isinf(min(waits)):
            return Refused(f"The engine does not start: {self._reason(candidates)}.", 10)
        seconds = math.ceil(min(waits))
        text = f"The engine does not start: {self._reason(candidates)}. The next try is in {seconds} s."
        return Refused(text, seconds)

    def _wake_one(self, candidates: Sequence[Server]) -> None:
        """Wake one of the servers, unless one is already starting or ready."""
        asleep = [server.server_uuid for server in candidates if server.state in _ASLEEP]
        if not asleep or any(_is_coming(server) for server in candidates):
            return
        self._wakes.start(asleep[0])

    def _reason(self, candidates: Sequence[Server]) -> str:
        """Return why there is no engine, as a sentence for people."""
        for server in candidates:
            if failure := self._wakes.failure(server.server_uuid):
                return f"it cannot be woken: {failure}"
        return why_not_ready(candidates[0]) or "it is being started"


def next_start(server: Server, now: float) -> float:
    """Return the seconds until the server's next start: 0 if one is running, infinite if there is none. `now` is a Unix time."""
    if server.state != server_pb2.SERVER_STATE_FAILING:
        return 0.0
    if ready_reason(server) in PERMANENT_FAILURES:
        return math.inf
    if not server.HasField("next_start_time"):
        return 0.0
    return max(0.0, server.next_start_time.ToMilliseconds() / 1000 - now)


def _is_coming(server: Server) -> bool:
    """Return whether an engine of a server is starting or ready."""
    halted = server.state in (*_ASLEEP, server_pb2.SERVER_STATE_FAILING)
    return not halted and ready_reason(server) != "WaitsForMemory"


def _budget(server: Server) -> float:
    return server.spec.wake_budget.ToMilliseconds() / 1000 or DEFAULT_BUDGET
