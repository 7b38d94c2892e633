"""Engines as processes of this machine: `python -m engine`, each in a session of its own, answering on a Unix socket.

They outlive a controller that is killed and are adopted by the next one through their records. They end with the supervisor of the mesh
through the lifeline that they inherit.

Invariant: one process for one record; an engine whose end we saw has its socket removed before anyone is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from controller.runtimes import Engine, Exit, Load, Order, Phase, probe
from controller.runtimes.backlogs import Backlogs
from controller.runtimes.ending import gone
from controller.runtimes.enginelog import EngineLogs
from controller.runtimes.records import Record, Records, new_record, with_process
from llamesh.kit.config import Settings, make_private
from llamesh.kit.lifeline import inherited_lifeline
from llamesh.kit.logs import log
from llamesh.processes import ProcessId, find_by_argument

_ROOT = Path(__file__).resolve().parent.parent.parent
_READY_POLL_SECONDS = 0.02
_TRIM_SECONDS = 10.0
SILENT_PROBES = 6
"""So many questions in a row without an answer, and an engine counts as hung; each waits 2 s. The engine has HTTP threads to spare
for them, so one that is merely busy answers. Counted and not timed: a machine that was suspended has hung nobody."""
_KILL_MARGIN = 2.0
"""Beyond the grace: the engine itself cuts off what still runs when the grace is over."""
_SIGNAL_WORDS = {signal.SIGKILL: "killed", signal.SIGSEGV: "crashed", signal.SIGABRT: "stopped itself"}


@dataclass(slots=True)
class _Held:
    """One engine and the task that watches it."""

    record: Record
    phase: Phase
    ready_since: float | None = None
    exit: Exit | None = None
    watch: asyncio.Task[None] | None = None
    kill: asyncio.TimerHandle | None = None
    hung: bool = False


class ProcessRuntime:
    """The engines of this machine. All methods belong to one event loop."""

    def __init__(
        self, settings: Settings, environment: Mapping[str, str] | None = None, probe_seconds: float = 5.0
    ) -> None:
        """`probe_seconds`: how often an engine that is ready is asked whether it still answers."""
        self._probe_seconds = probe_seconds
        self._grace = settings.drain_seconds
        self._environment = _without_secrets(os.environ if environment is None else environment)
        if settings.llama_server_bin:
            self._environment["LLAMA_SERVER_BIN"] = settings.llama_server_bin
        self._records = Records(settings.run_dir / "engines")
        self._logs = EngineLogs(settings.home / "logs" / "engines")
        self._held: dict[str, _Held] = {}
        self._backlogs = Backlogs()
        self._on_change: Callable[[str], None] = lambda _: None
        self._trimming: asyncio.Task[None] | None = None

    async def open(self, on_change: Callable[[str], None]) -> None:
        """Adopt the engines that run already, their readiness asked; clean up after those that ended meanwhile."""
        make_private(self._records.directory.parent)
        make_private(self._records.directory)
        self._on_change = on_change
        await asyncio.gather(*(self._adopt(record) for record in self._records.all()))
        self._trimming = asyncio.create_task(self._trim_for_ever())

    async def close(self) -> None:
        """Stop watching. The engines stay."""
        tasks = [held.watch for held in self._held.values() if held.watch] + [self._trimming]
        for held in self._held.values():
            if held.kill:
                held.kill.cancel()
        for task in tasks:
            if task:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)
        await self._backlogs.close()

    async def stop_all(self, grace: float) -> None:
        """End every engine and wait until all are gone: the mesh of this machine is stopped."""
        watches = [held.watch for held in self._held.values() if held.watch and held.phase is not Phase.ENDED]
        for instance in list(self._held):
            self.stop(instance, grace)
        if watches:
            await asyncio.wait(watches)
        for instance in list(self._held):
            self.forget(instance)

    def servers(self) -> Collection[str]:
        """Every server that has an engine here, declared or not."""
        return {held.record.server_uuid for held in self._held.values()}

    def engines(self, server_uuid: str) -> Sequence[Engine]:
        """A server's engines, the ended ones that are not forgotten included, the oldest first."""
        found = [held for held in self._held.values() if held.record.server_uuid == server_uuid]
        return [self._engine(held) for held in sorted(found, key=lambda held: held.record.start_seconds)]

    async def start(self, order: Order) -> None:
        """Start an engine. Returns before it is ready; one that cannot even be started shows as ENDED."""
        instance = self._records.free_instance(order.server_uuid)
        record = self._records.write(new_record(instance, order.server_uuid, order.replica, order.spec_hash))
        held = self._held[instance] = _Held(record, Phase.STARTING)
        self._records.state(instance).unlink(missing_ok=True)
        self._records.spec(instance).write_text(json.dumps(self._document(instance, order)))
        try:
            process = await self._spawn(instance, order)
        except OSError as error:
            self._end(held, Exit("CannotStart", f"the engine cannot be started: {error}", asked=False))
            return
        held.record = self._records.write(with_process(record, ProcessId.of(process.pid)))
        log.info("engine started", server=order.server_uuid, replica=order.replica, instance=instance, pid=process.pid)
        held.watch = asyncio.create_task(self._live(held, process.wait()))

    def stop(self, instance: str, grace: float) -> None:
        """Tell an engine to end, by force after `grace` seconds. Returns at once; repeating it changes nothing."""
        held = self._held.get(instance)
        if held is None or held.phase in (Phase.STOPPING, Phase.ENDED):
            return
        held.phase = Phase.STOPPING
        held.record = self._records.write(replace(held.record, stopping=True))
        held.record.process.signal(signal.SIGTERM)
        self._kill_later(held, grace)

    def forget(self, instance: str) -> None:
        """Remove what is left of an ended engine."""
        held = self._held.get(instance)
        if held is not None and held.phase is Phase.ENDED:
            del self._held[instance]
            self._records.remove(instance)

    async def load(self, instance: str) -> Load | None:
        """Ask an engine how busy it is; None where it does not say."""
        return await probe.load(str(self._records.socket(instance)))

    def read_log(self, server_uuid: str, replica: int, tail: int, *, follow: bool) -> AsyncIterator[Sequence[str]]:
        """The last lines of a replica's log, then, with `follow`, the new ones as they come."""
        return self._logs.read(server_uuid, replica, tail, follow=follow)

    def drop_logs(self, server_uuid: str) -> None:
        """Remove the logs of a server that is gone."""
        self._logs.drop(server_uuid)

    async def _adopt(self, record: Record) -> None:
        if record.pid == 0:
            # The controller was killed between the record and the start, or just after it.
            process = find_by_argument(str(self._records.spec(record.instance)))
            record = self._records.write(with_process(record, process)) if process else record
        if not record.process.alive:
            self._records.remove(record.instance)
            return
        held = self._held[record.instance] = _Held(record, Phase.STOPPING if record.stopping else Phase.STARTING)
        if not record.stopping and await probe.is_ready(str(self._records.socket(record.instance))):
            held.phase, held.ready_since = Phase.READY, time.monotonic()
        log.info("engine adopted", server=record.server_uuid, instance=record.instance, pid=record.pid)
        if record.stopping:
            self._kill_later(held, self._grace)
        held.watch = asyncio.create_task(self._live(held, gone(record.process)))

    async def _live(self, held: _Held, ended: Awaitable[int | None]) -> None:
        waiting = asyncio.create_task(self._watch(held))
        self._backlogs.hold(held.record.instance, self._records.hand_over(held.record.instance))
        try:
            code = await ended
        finally:
            waiting.cancel()
        self._end(held, self._explain(held, code))

    async def _watch(self, held: _Held) -> None:
        await self._until_ready(held)
        await self._until_silent(held)
        if held.phase is Phase.READY:
            log.error("engine killed: it does not answer any more", instance=held.record.instance)
            held.hung = True
            held.record.process.signal(signal.SIGKILL)

    async def _until_silent(self, held: _Held) -> None:
        """Until an engine that was ready has hung. Without this its requests would wait for ever, its server seeming well."""
        socket = str(self._records.socket(held.record.instance))
        silent = 0
        while held.phase is Phase.READY and silent < SILENT_PROBES:
            await asyncio.sleep(self._probe_seconds)
            silent = 0 if await probe.is_ready(socket) else silent + 1

    async def _until_ready(self, held: _Held) -> None:
        socket = str(self._records.socket(held.record.instance))
        while held.phase is Phase.STARTING:
            if await probe.is_ready(socket):
                if held.phase is Phase.STARTING:
                    held.phase, held.ready_since = Phase.READY, time.monotonic()
                    self._on_change(held.record.server_uuid)
                return
            await asyncio.sleep(_READY_POLL_SECONDS)

    def _end(self, held: _Held, ended: Exit) -> None:
        if held.kill:
            held.kill.cancel()
        held.phase, held.exit = Phase.ENDED, ended
        self._backlogs.turn_away(held.record.instance)
        self._records.socket(held.record.instance).unlink(missing_ok=True)
        log.info(
            "engine ended",
            server=held.record.server_uuid,
            instance=held.record.instance,
            reason=ended.reason,
            message=ended.message,
        )
        self._on_change(held.record.server_uuid)

    def _explain(self, held: _Held, code: int | None) -> Exit:
        asked = held.record.stopping
        left = self._records.explanation(held.record.instance)
        if left is not None:
            return Exit("".join(word.capitalize() for word in left[0].split("_")), left[1], asked)
        if held.hung:
            return Exit("EngineHung", "the engine did not answer any more and was killed", asked)
        if code is not None and code < 0:
            number = signal.Signals(-code)
            words = _SIGNAL_WORDS.get(number, "ended")
            return Exit("EngineKilled", f"the engine was {words} (signal {-code}, {number.name})", asked)
        if code:
            return Exit("EngineExited", f"the engine exited with code {code}", asked)
        return Exit("EngineExited", "the engine ended" if asked else "the engine ended by itself", asked)

    def _kill_later(self, held: _Held, grace: float) -> None:
        def kill() -> None:
            log.warning("engine killed: it did not end in time", instance=held.record.instance)
            held.record.process.signal(signal.SIGKILL)

        held.kill = asyncio.get_running_loop().call_later(grace + _KILL_MARGIN, kill)

    async def _spawn(self, instance: str, order: Order) -> asyncio.subprocess.Process:
        lifeline = inherited_lifeline()
        output = self._logs.open(order.server_uuid, order.replica)
        try:
            return await asyncio.create_subprocess_exec(
                # -P: a folder called `engine` where the mesh was started is not ours; -m finds ours through PYTHONPATH.
                *(sys.executable, "-P", "-m", "engine", str(self._records.spec(instance))),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
                pass_fds=() if lifeline is None else (lifeline,),
            )
        finally:
            os.close(output)

    def _document(self, instance: str, order: Order) -> dict[str, object]:
        return {
            "model": order.model_path,
            "listen": str(self._records.socket(instance)),
            "alias": order.alias,
            "http_threads": order.http_threads,
            "model_context": order.model_context,
            "parameters": dict(order.parameters),
            "grace_seconds": self._grace,
            "state_file": str(self._records.state(instance)),
            "hand_over": str(self._records.hand_over(instance)),
        }

    def _engine(self, held: _Held) -> Engine:
        record = held.record
        return Engine(
            record.instance,
            record.server_uuid,
            record.replica,
            record.spec_hash,
            held.phase,
            str(self._records.socket(record.instance)),
            str(record.pid),
            datetime.fromtimestamp(record.start_seconds, UTC),
            held.ready_since,
            held.exit,
        )

    async def _trim_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            with contextlib.suppress(OSError):
                self._logs.trim()


def _without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Our environment without the settings that are secrets, and with the folder that our packages lie in."""
    secrets = {
        str(name)
        for field in Settings.model_fields.values()
        if "SecretStr" in str(field.annotation)
        for name in getattr(field.validation_alias, "choices", ())
    }
    kept = {name: value for name, value in environment.items() if name not in secrets}
    paths = [str(_ROOT), *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}
