"""Liveness of the engines in pods: whether their inference loops make progress (ADR 11).

The probes of the kubelet ask /health, which llama.cpp's HTTP threads answer while the loop is stuck. So the controller asks for counters,
which pass through the loop, and decides as for processes, except that it does not see the processor time of a pod.

Invariant: only pods whose containers are ready are probed, and a controller that reaches none of several doubts none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from controller.kubernetes import pod_probe
from controller.runtimes import Liveness
from controller.runtimes.liveness import Assessment, ProbeHistory, ProbeResult, assess, with_probe
from controller.runtimes.probe import UnreachableError
from llamesh.background import BackgroundTask, Report
from llamesh.kit.kubernetes_api import ClusterError
from llamesh.kit.logs import log

PROBE_SECONDS = 2.0
MAX_PROBES = 64
"""Maximum number of probes at the same time."""
ALIVE = Assessment(Liveness.ALIVE)


@dataclass(slots=True)
class _Watched:
    history: ProbeHistory
    probed: float
    assessment: Assessment = ALIVE


class PodLiveness:
    """Probes every ready pod.

    `ready` returns name and address of each by its uid; `changed(uid)` is called when an assessment changes, `end(uid)` for a stuck engine.
    """

    def __init__(
        self,
        ready: Callable[[], Iterable[tuple[str, str, str]]],
        changed: Callable[[str], None],
        end: Callable[[str], Awaitable[None]],
        stall_seconds: float,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ready = ready
        self._changed = changed
        self._end = end
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._report = report
        self._watched: dict[str, _Watched] = {}
        self._slots = asyncio.Semaphore(MAX_PROBES)
        self._task = BackgroundTask("probe the engines in pods", self._probe_all, report, every=PROBE_SECONDS)

    def start(self) -> None:
        """Start to probe."""
        self._task.start()

    async def close(self) -> None:
        """Stop probing."""
        await self._task.close()

    def assessment(self, uid: str) -> Assessment:
        """Return the assessment of a pod."""
        found = self._watched.get(uid)
        return found.assessment if found else ALIVE

    async def _probe_all(self) -> None:
        present = {uid: (name, address) for uid, name, address in self._ready()}
        for uid in self._watched.keys() - present.keys():
            del self._watched[uid]
        results = await asyncio.gather(*(self._asked(uid, address) for uid, (_, address) in present.items()))
        # That none of several answers says more about this controller's network than about them.
        if len(results) > 1 and not any(result.answered for result in results):
            log.warning("no engine answers the controller; none is taken out of balance for it", engines=len(results))
            return
        for uid, result in zip(present, results, strict=True):
            await self._count(uid, present[uid][0], result)

    async def _asked(self, uid: str, address: str) -> ProbeResult:
        watched = self._watched.setdefault(uid, _Watched(ProbeHistory(), self._clock()))
        answered, unreachable, waiting, work = False, False, False, 0.0
        async with self._slots:
            try:
                if (found := await pod_probe.counters(address)) is not None:
                    answered, waiting, work = True, found.requests > 0, found.work
            except UnreachableError:
                unreachable = True
        now = self._clock()
        seconds, watched.probed = now - watched.probed, now
        return ProbeResult(seconds, answered, unreachable, waiting, work)

    async def _count(self, uid: str, name: str, result: ProbeResult) -> None:
        watched = self._watched[uid]
        watched.history = with_probe(watched.history, result, self._stall_seconds)
        before, watched.assessment = watched.assessment, assess(watched.history, self._stall_seconds)
        if watched.assessment != before:
            if watched.assessment.liveness is not Liveness.ALIVE:
                log.warning(f"engine {watched.assessment.liveness.value}", pod=name, reason=watched.assessment.message)
            self._changed(uid)
        if watched.assessment.liveness is Liveness.STUCK:
            # In each round until the pod has gone: a call may fail, and another controller may lead.
            try:
                await self._end(uid)
            except ClusterError as error:
                self._report(f"end the stuck pod {name}", error)
