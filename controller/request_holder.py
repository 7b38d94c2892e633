"""Holds requests for servers without a ready engine, wakes these servers, and decides when each request goes on. Independent of HTTP.

A request is held for the cluster of a server or of a model name (llamesh.names). If several servers have the name, one is enough.

The waker awaits `hold` for each request. `hold` waits for changes of the candidates in the status cache and decides again after each
change: go on, wait or refuse. The first request for a sleeping server starts one wake task for that server, independent of the number of
held requests; a failed wake is retried with exponential backoff while a request is held. A request is refused before its budget ends only
if waiting cannot help: the failure is permanent, or no start is running and the next one is due after the budget.

Invariant: a request goes on only after Envoy has acknowledged an engine. Every held request ends within its budget.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from controller.demand import Demand
from controller.status_cache import StatusCache
from controller.status_reading import ready_reason, why_not_ready
from llamesh.background import backoff
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.logs import report_failure
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
    """Holds requests and wakes servers."""

    def __init__(
        self,
        statuses: StatusCache,
        wake: Callable[[str], Awaitable[None]],
        touch: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        max_held: int = MAX_HELD,
        *,
        demand: Demand | None = None,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`wake(server_uuid)` wakes a server; `touch(server_uuid)` records activity; `demand` counts the held requests of each server."""
        self.held = 0
        """Requests that wait now."""
        self._statuses = statuses
        self._wake = wake
        self._touch = touch
        self._clock = clock
        self._max_held = max_held
        self._demand = demand or Demand()
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._waiting: set[asyncio.Event] = set()
        """Set to make held requests decide again."""
        self._ending = False
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._causes: dict[str, str] = {}
        """Why a server's last wake failed, while it is being tried again."""

    def refuse_all(self) -> None:
        """Refuse all held and future requests: the mesh is stopping, so no engine will become ready."""
        self._ending = True
        for changed in self._waiting:
            changed.set()

    async def close(self) -> None:
        """Cancel all wake tasks."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        name = asleep[0]
        if name not in self._under_way:
            # A separate task, so that a client that disconnects does not cancel the wake for the other requests.
            self._under_way[name] = asyncio.create_task(self._wake_repeatedly(name))

    async def _wake_repeatedly(self, server_uuid: str) -> None:
        """Wake the server repeatedly until a wake succeeds or no request is held for it."""
        failures = 0
        try:
            while True:
                try:
                    await self._wake(server_uuid)
                    return
                except Exception as error:
                    if isinstance(error, MeshError) and error.reason == Reason.ERROR_REASON_SERVER_NOT_FOUND:
                        # The server was just removed; the status cache will report it.
                        return
                    failures += 1
                    self._causes[server_uuid] = _words(error)
                    report_failure(f"wake server {server_uuid}", error)
                await self._sleep(backoff(failures))
                if not self._demand.waits_for(server_uuid):
                    return
        finally:
            del self._under_way[server_uuid]
            self._causes.pop(server_uuid, None)

    def _reason(self, candidates: Sequence[Server]) -> str:
        """Return why there is no engine, as a sentence for people."""
        for server in candidates:
            if cause := self._causes.get(server.server_uuid):
                return f"it cannot be woken: {cause}"
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


def _words(error: Exception) -> str:
    return error.message if isinstance(error, MeshError) else f"{type(error).__name__}: {error}"


def _budget(server: Server) -> float:
    return server.spec.wake_budget.ToMilliseconds() / 1000 or DEFAULT_BUDGET
