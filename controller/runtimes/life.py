"""One engine of this machine from its start to its end: one task sees it through, whatever fails on the way.

Invariant: from `start` or `adopt` until the engine is ENDED, its end is waited for and its liveness is probed. A failure of our own (a full
disk, no free descriptor) is never held against the engine, and never ends the watching.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from controller.runtimes import CANNOT_START, Exit, Liveness, Load, Phase, probe
from controller.runtimes.backlogs import Backlogs
from controller.runtimes.ending import gone
from controller.runtimes.liveness import SILENT, Judgement, Pulse, Sight, after, judge, judge_loading
from controller.runtimes.records import Record, Records, with_process
from controller.runtimes.vitals import Vitals, vitals
from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure
from llamesh.kit.occupancy import ConnectionTable, Counters, is_busy
from llamesh.processes import ProcessId, exit_words
from llamesh.shutdown import STOP

_FIRST_READY_POLL = 0.02
_LONGEST_READY_POLL = 0.5
"""Seconds between two questions to an engine that starts: the longer it takes, the less often it is asked."""
_LOADING_PROBE_SECONDS = 2.0
_KILL_MARGIN = 2.0
"""Beyond the grace: the engine itself cuts off what still runs when the grace is over."""
_CLOSING_SECONDS = 0.005
_CLOSING_TRIES = 3
"""A connection of our own that we have closed may count for so long."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an engine is held to."""

    probe_seconds: float
    """How often an engine that is ready is asked."""
    stall_seconds: float
    """See `controller.runtimes.liveness.patience`."""


class Life:
    """One engine. `changed(server_uuid)` is called whenever something about it has changed."""

    def __init__(
        self,
        record: Record,
        records: Records,
        backlogs: Backlogs,
        table: ConnectionTable,
        terms: Terms,
        changed: Callable[[str], None],
    ) -> None:
        self.record = record
        self.phase = Phase.STOPPING if record.stopping else Phase.STARTING
        self.ready_since: float | None = None
        self.exit: Exit | None = None
        self.judgement = Judgement(Liveness.ALIVE)
        self._records = records
        self._backlogs = backlogs
        self._table = table
        self._terms = terms
        self._changed = changed
        self._pulse = Pulse()
        self._vitals: Vitals | None = None
        self._probed = time.monotonic()
        self._ready_poll = _FIRST_READY_POLL
        self._asking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._kill: asyncio.TimerHandle | None = None

    @property
    def socket(self) -> Path:
        """Where it answers."""
        return self._records.socket(self.record.instance)

    def start(self, spawn: Callable[[], Awaitable[asyncio.subprocess.Process]]) -> None:
        """Begin with a new process. If `spawn` fails, however it does, the engine is ENDED."""
        self._task = asyncio.create_task(self._from_the_start(spawn))

    async def adopt(self, grace: float) -> None:
        """Go on with an engine that runs: it is asked at once whether it is ready. One that was ready and does not answer hangs: it does
        not get the long patience of a start."""
        if self.phase is Phase.STARTING:
            answers = await probe.is_ready(str(self.socket))
            if answers or self._records.was_ready(self.record.instance):
                self.phase, self.ready_since = Phase.READY, time.monotonic()
            if self.phase is Phase.READY and not answers:
                self._pulse = SILENT
                self.judgement = judge(self._pulse, self._terms.stall_seconds)
        if self.phase is Phase.STOPPING:
            self._kill_after(grace)
        self._task = asyncio.create_task(self._live(lambda: gone(self.record.process)))

    def stop(self, grace: float) -> None:
        """Tell it to end, by force after `grace` seconds. Returns at once; repeating it changes nothing."""
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            return
        self.phase = Phase.STOPPING
        self.record = replace(self.record, stopping=True)
        self.record.process.signal(STOP)
        self._kill_after(grace)
        # After the signal: a full disk must not keep an engine running.
        self.save()

    def fail(self, message: str) -> None:
        """End it before it has begun."""
        self._end(Exit(CANNOT_START, f"the engine cannot be started: {message}", asked=self.record.stopping))

    def save(self) -> None:
        """Write the record; if that fails now, `keep_record` does it later."""
        try:
            self.keep_record()
        except OSError as error:
            log.warning("cannot write the record of an engine", instance=self.record.instance, error=str(error))

    def keep_record(self) -> None:
        """See to it that the record on disk is right. Raises OSError."""
        if self.phase is not Phase.ENDED:
            self._records.keep(self.record)

    async def load(self) -> Load | None:
        """How busy it is; None if it does not say."""
        async with self._asking:
            try:
                counters = await probe.counters(str(self.socket))
            except probe.UnreachableError:
                connections = await self._connections()
                return None if connections is None else Load(is_busy(0, connections), self._pulse.work or 0.0)
            except OSError as error:
                log.warning("cannot ask an engine", instance=self.record.instance, error=str(error))
                return None
            if counters is None:
                return None
            connections = None if counters.requests else await self._connections()
            return Load(is_busy(counters.requests, connections), counters.work)

    async def ended(self) -> None:
        """Return when it has ended."""
        if self._task:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Watch it no longer. It stays."""
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
        log.info(
            "engine started",
            server=self.record.server_uuid,
            replica=self.record.replica,
            instance=self.record.instance,
            pid=process.pid,
        )
        if self.phase is Phase.STOPPING:
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
        self._end(self._explained(code))

    async def _exit_code(self, wait: Callable[[], Awaitable[int | None]]) -> int | None:
        try:
            return await wait()
        except Exception as error:
            report_failure(f"wait for the end of engine {self.record.instance}", error)
            await gone(self.record.process)
            return None

    async def _watch(self) -> None:
        """One probe, and the pause before the next."""
        if self.phase is Phase.STARTING:
            await self._watch_starting()
        elif self.phase is Phase.READY:
            began = time.monotonic()
            await self._watch_ready()
            # Without a pause while it is silent: it is back in balance as soon as it answers.
            await asyncio.sleep(max(0.0, self._terms.probe_seconds - (time.monotonic() - began)))
        else:
            await asyncio.sleep(self._terms.probe_seconds)

    async def _watch_starting(self) -> None:
        ready = await probe.is_ready(str(self.socket))
        if self.phase is not Phase.STARTING:
            return
        if ready:
            self.phase, self.ready_since = Phase.READY, time.monotonic()
            self._pulse, self._probed, self._vitals = Pulse(), time.monotonic(), None
            self._changed(self.record.server_uuid)
            return
        if time.monotonic() - self._probed >= _LOADING_PROBE_SECONDS:
            self._take_in(Sight(self._since_last_probe(), answered=False, idle=self._idle()))
            self._conclude(judge_loading(self._pulse))
        await asyncio.sleep(self._ready_poll)
        self._ready_poll = min(self._ready_poll * 1.5, _LONGEST_READY_POLL)

    async def _watch_ready(self) -> None:
        counters: Counters | None = None
        unreachable = False
        async with self._asking:
            try:
                counters = await probe.counters(str(self.socket))
            except probe.UnreachableError:
                unreachable = True
        if self.phase is Phase.READY:
            self._take_in(self._sight(counters, unreachable))
            self._conclude(judge(self._pulse, self._terms.stall_seconds))

    def _sight(self, counters: Counters | None, unreachable: bool) -> Sight:
        seconds, idle = self._since_last_probe(), self._idle()
        if counters is None:
            ended = self._vitals is not None and self._vitals.ended
            return Sight(seconds, answered=False, unreachable=unreachable, idle=idle, ended=ended)
        batch_seconds = self.record.batch / counters.prompt_rate if counters.prompt_rate else None
        return Sight(seconds, True, False, counters.requests > 0, counters.work, batch_seconds, idle)

    def _take_in(self, sight: Sight) -> None:
        self._pulse = after(self._pulse, sight, self._terms.stall_seconds)

    def _conclude(self, judgement: Judgement) -> None:
        """Take a judgement. STUCK is final: the probes of an engine that dies say nothing about why it was killed."""
        if self.judgement.liveness is Liveness.STUCK:
            return
        before, self.judgement = self.judgement, judgement
        if judgement == before:
            return
        about = {"server": self.record.server_uuid, "instance": self.record.instance, "reason": judgement.message}
        if judgement.liveness is Liveness.STUCK:
            log.error("engine killed: it hangs", **about)
            self.record.process.signal(signal.SIGKILL)
        elif judgement.liveness is Liveness.ALIVE:
            log.info("engine answers again", server=self.record.server_uuid, instance=self.record.instance)
        else:
            log.warning(f"engine {judgement.liveness.value}", **about)
        self._changed(self.record.server_uuid)

    def _since_last_probe(self) -> float:
        now = time.monotonic()
        seconds, self._probed = now - self._probed, now
        return seconds

    def _idle(self) -> bool:
        before, self._vitals = self._vitals, vitals(self.record.process)
        return self._vitals is not None and self._vitals.idle_since(before)

    async def _connections(self) -> int | None:
        """Clients that are connected. One question of our own is under way at most, and it is over."""
        llama = vitals(self.record.process)
        if llama is None:
            return None
        found = await self._table.clients(self.socket, llama.pid)
        for _ in range(_CLOSING_TRIES):
            if not found:
                break
            await asyncio.sleep(_CLOSING_SECONDS)
            found = await self._table.clients(self.socket, llama.pid)
        return found

    def _end(self, ended: Exit) -> None:
        if self._kill:
            self._kill.cancel()
        self.phase, self.exit = Phase.ENDED, ended
        self._backlogs.turn_away(self.record.instance)
        with contextlib.suppress(OSError):
            self.socket.unlink(missing_ok=True)
        log.info(
            "engine ended",
            server=self.record.server_uuid,
            instance=self.record.instance,
            reason=ended.reason,
            message=ended.message,
        )
        self._changed(self.record.server_uuid)

    def _explained(self, code: int | None) -> Exit:
        asked = self.record.stopping
        left = self._records.explanation(self.record.instance)
        if left is not None:
            return Exit("".join(word.capitalize() for word in left[0].split("_")), left[1], asked)
        if self.judgement.liveness is Liveness.STUCK:
            return Exit("InferenceStuck", f"the engine was killed: {self.judgement.message}", asked)
        if code is not None and code < 0:
            return Exit("EngineKilled", f"the engine {exit_words(code)}", asked)
        if code:
            return Exit("EngineExited", f"the engine {exit_words(code)}", asked)
        return Exit("EngineExited", "the engine ended" if asked else "the engine ended by itself", asked)

    def _kill_after(self, grace: float) -> None:
        def kill() -> None:
            log.warning("engine killed: it did not end in time", instance=self.record.instance)
            self.record.process.signal(signal.SIGKILL)

        self._kill = asyncio.get_running_loop().call_later(grace + _KILL_MARGIN, kill)
