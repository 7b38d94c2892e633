"""Supervises one engine process of this machine from its start, or its adoption, to its end.

A task waits for the end of the process that `start` spawns or `adopt` takes over. In parallel a background task probes: /health until the
engine is ready, then the counters of its inference loop. The pure functions of `liveness` assess each probe and may have the engine
killed. Every change calls `changed`, which queues a reconciliation. Probes and `load` share one lock, because a second connection of this
process would count as a client of llama.cpp. Invariant: until the engine is ENDED, its end is awaited and its liveness is probed; a
failure of this process (a full disk, no free descriptor) never counts as a failure of the engine and never ends the supervision.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from controller.runtimes import CANNOT_START, EngineExit, EngineLoad, EnginePhase, Liveness, probe
from controller.runtimes.backlogs import Backlogs
from controller.runtimes.clients import connected_clients
from controller.runtimes.exits import explain_exit
from controller.runtimes.liveness import (
    SILENT,
    Assessment,
    ProbeHistory,
    ProbeResult,
    ProbeSettings,
    assess,
    assess_loading,
    with_probe,
)
from controller.runtimes.process_exit import wait_for_exit
from controller.runtimes.process_stats import ProcessStats, has_lost_socket, is_halted, llama_stats
from controller.runtimes.records import EngineRecord, EngineRecords, with_process
from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure
from llamesh.kit.occupancy import ConnectionTable, Counters, is_busy
from llamesh.processes import ProcessId
from llamesh.shutdown import STOP

_FIRST_READY_POLL = 0.02
_MAX_READY_POLL = 0.5
"""Seconds between two readiness probes of a starting engine. The pause grows with the time since the start."""
_LOADING_PROBE_SECONDS = 2.0
_KILL_MARGIN = 2.0
"""Seconds after the grace period before the engine is killed. The engine itself cuts off running requests when the grace period ends."""


class EngineProcess:
    """One engine process. Calls `changed(server_uuid)` after every change."""

    def __init__(
        self,
        record: EngineRecord,
        records: EngineRecords,
        backlogs: Backlogs,
        table: ConnectionTable,
        probing: ProbeSettings,
        changed: Callable[[str], None],
    ) -> None:
        self.record = record
        self.phase = EnginePhase.STOPPING if record.stopping else EnginePhase.STARTING
        self.ready_since: float | None = None
        self.exit: EngineExit | None = None
        self.assessment = Assessment(Liveness.ALIVE)
        self._records = records
        self._backlogs = backlogs
        self._table = table
        self._probing = probing
        self._changed = changed
        self._probes = ProbeHistory()
        self._stats: ProcessStats | None = None
        self._probed = time.monotonic()
        self._ready_poll = _FIRST_READY_POLL
        self._asking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._kill: asyncio.TimerHandle | None = None

    @property
    def socket(self) -> Path:
        """Socket on which the engine answers."""
        return self._records.socket(self.record.instance)

    @property
    def _about(self) -> dict[str, str]:
        """Fields that identify the engine in a log line."""
        return {"server": self.record.server_uuid, "instance": self.record.instance}

    def start(self, spawn: Callable[[], Awaitable[asyncio.subprocess.Process]]) -> None:
        """Start a new process. If `spawn` fails for any reason, the engine is ENDED."""
        self._task = asyncio.create_task(self._from_the_start(spawn))

    async def adopt(self, grace: float) -> None:
        """Adopt a running engine and probe it at once. If it was ready and does not answer, it hangs and gets no time to start."""
        if self.phase is EnginePhase.STARTING:
            answers = await probe.is_ready(str(self.socket))
            if answers or self._records.was_ready(self.record.instance):
                self._become_ready(ProbeHistory() if answers else SILENT)
        if self.phase is EnginePhase.STOPPING:
            self._kill_after(grace)
        self._task = asyncio.create_task(self._live(lambda: wait_for_exit(self.record.process)))

    def stop(self, grace: float) -> None:
        """Stop the engine, by force after `grace` seconds. Returns at once; idempotent."""
        if self.phase in (EnginePhase.STOPPING, EnginePhase.ENDED):
            return
        self.phase = EnginePhase.STOPPING
        self.record = replace(self.record, stopping=True)
        self.record.process.signal(STOP)
        self._kill_after(grace)
        # After the signal: a full disk must not keep an engine running.
        self.save()

    def fail(self, message: str) -> None:
        """Mark the engine as ENDED before it has started."""
        self._end(EngineExit(CANNOT_START, f"the engine cannot be started: {message}", requested=self.record.stopping))

    def save(self) -> None:
        """Write the record. If that fails, `keep_record` writes it later."""
        try:
            self.keep_record()
        except OSError as error:
            log.warning("cannot write the record of an engine", instance=self.record.instance, error=str(error))

    def keep_record(self) -> None:
        """Write the record if its file differs. Raises OSError."""
        if self.phase is not EnginePhase.ENDED:
            self._records.keep(self.record)

    async def load(self) -> EngineLoad | None:
        """Return the load of the engine; None if it does not answer."""
        async with self._asking:
            try:
                counters = await probe.counters(str(self.socket))
            except probe.UnreachableError:
                connections = await connected_clients(self._table, self.socket, self.record.process)
                return None if connections is None else EngineLoad(is_busy(0, connections), self._probes.work or 0.0)
            except OSError as error:
                log.warning("the load of an engine cannot be read", instance=self.record.instance, error=str(error))
                return None
            if counters is None:
                return None
            connections = (
                None if counters.requests else await connected_clients(self._table, self.socket, self.record.process)
            )
            return EngineLoad(is_busy(counters.requests, connections), counters.work)

    async def ended(self) -> None:
        """Wait until the engine has ended."""
        if self._task:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Stop watching. The engine keeps running."""
        if self._kill:
            self._kill.cancel()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _from_the_start(self, spawn: Callable[[], Awaitable[asyncio.subprocess.Process]]) -> None:
        try:
            process = await spawn()
        except Exception as error:
            self.fail(str(error) or type(error).__name__)
            return
        self.record = with_process(self.record, ProcessId.of(process.pid))
        log.info("engine started", **self._about, replica=self.record.replica, pid=process.pid)
        if self.phase is EnginePhase.STOPPING:
            self.record.process.signal(signal.SIGKILL)
        self.save()
        await self._live(process.wait)

    async def _live(self, wait: Callable[[], Awaitable[int | None]]) -> None:
        watch = BackgroundTask(f"watch engine {self.record.instance}", self._watch, report_failure)
        watch.start()
        self._backlogs.hold(self.record.instance, self._records.hand_over(self.record.instance))
        try:
            code = await self._exit_code(wait)
        finally:
            await watch.close()
        self._end(
            explain_exit(code, self.record.stopping, self._records.explanation(self.record.instance), self.assessment)
        )

    async def _exit_code(self, wait: Callable[[], Awaitable[int | None]]) -> int | None:
        try:
            return await wait()
        except Exception as error:
            report_failure(f"wait for the end of engine {self.record.instance}", error)
            await wait_for_exit(self.record.process)
            return None

    async def _watch(self) -> None:
        """Probe once, then pause until the next probe is due."""
        if self.phase is EnginePhase.STARTING:
            await self._watch_starting()
        elif self.phase is EnginePhase.READY:
            began = time.monotonic()
            await self._watch_ready()
            # No pause while the engine does not answer, so that an answer restores it at once.
            await asyncio.sleep(max(0.0, self._probing.probe_seconds - (time.monotonic() - began)))
        else:
            await asyncio.sleep(self._probing.probe_seconds)

    async def _watch_starting(self) -> None:
        ready = await probe.is_ready(str(self.socket))
        if ready:
            await self._backlogs.settled(self.record.instance)
        if self.phase is not EnginePhase.STARTING:
            return
        if ready or has_lost_socket(self.record.process, self.socket):
            self._become_ready(ProbeHistory() if ready else SILENT)
            return
        if time.monotonic() - self._probed >= _LOADING_PROBE_SECONDS:
            self._add_result(ProbeResult(self._since_last_probe(), answered=False, idle=self._idle()))
            self._conclude(assess_loading(self._probes))
        await asyncio.sleep(self._ready_poll)
        self._ready_poll = min(self._ready_poll * 1.5, _MAX_READY_POLL)

    def _become_ready(self, probes: ProbeHistory) -> None:
        """Make the engine READY. With the history SILENT it gets no requests, and no more time to start."""
        self.phase, self.ready_since = EnginePhase.READY, time.monotonic()
        self._probes, self._probed, self._stats = probes, time.monotonic(), None
        self.assessment = assess(probes, self._probing.stall_seconds)
        self._changed(self.record.server_uuid)

    async def _watch_ready(self) -> None:
        counters: Counters | None = None
        unreachable = False
        async with self._asking:
            try:
                counters = await probe.counters(str(self.socket))
            except probe.UnreachableError:
                unreachable = True
        if self.phase is EnginePhase.READY:
            self._add_result(self._result(counters, unreachable))
            self._conclude(assess(self._probes, self._probing.stall_seconds))

    def _result(self, counters: Counters | None, unreachable: bool) -> ProbeResult:
        seconds, idle = self._since_last_probe(), self._idle()
        halted = is_halted(self.record.process)
        if counters is None:
            ended = self._stats is not None and self._stats.ended
            return ProbeResult(seconds, answered=False, unreachable=unreachable, idle=idle, ended=ended, halted=halted)
        batch_seconds = self.record.batch / counters.prompt_rate if counters.prompt_rate else None
        return ProbeResult(
            seconds, True, False, counters.requests > 0, counters.work, batch_seconds, idle, halted=halted
        )

    def _add_result(self, result: ProbeResult) -> None:
        self._probes = with_probe(self._probes, result, self._probing.stall_seconds)

    def _conclude(self, assessment: Assessment) -> None:
        """Apply an assessment. STUCK is final, because later probes of a dying engine do not explain why it was killed."""
        if self.assessment.liveness is Liveness.STUCK:
            return
        before, self.assessment = self.assessment, assessment
        if assessment == before:
            return
        about = {**self._about, "reason": assessment.message}
        if assessment.liveness is Liveness.STUCK:
            log.error("engine killed: it hangs", **about)
            self.record.process.signal(signal.SIGKILL)
        elif assessment.liveness is Liveness.ALIVE:
            log.info("engine answers again", **self._about)
        else:
            log.warning(f"engine {assessment.liveness.value}", **about)
        self._changed(self.record.server_uuid)

    def _since_last_probe(self) -> float:
        now = time.monotonic()
        seconds, self._probed = now - self._probed, now
        return seconds

    def _idle(self) -> bool:
        before, self._stats = self._stats, llama_stats(self.record.process)
        return self._stats is not None and self._stats.idle_since(before)

    def _end(self, ended: EngineExit) -> None:
        if self._kill:
            self._kill.cancel()
        self.phase, self.exit = EnginePhase.ENDED, ended
        self._backlogs.turn_away(self.record.instance)
        with contextlib.suppress(OSError):
            self.socket.unlink(missing_ok=True)
        log.info("engine ended", **self._about, reason=ended.reason, message=ended.message)
        self._changed(self.record.server_uuid)

    def _kill_after(self, grace: float) -> None:
        def kill() -> None:
            log.warning("engine killed: it did not end in time", instance=self.record.instance)
            self.record.process.signal(signal.SIGKILL)

        self._kill = asyncio.get_running_loop().call_later(grace + _KILL_MARGIN, kill)
