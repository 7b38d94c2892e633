"""Keeps the mesh's processes running and ends them in order.

Invariant: no child outlives the supervisor. Every child holds the read end of a pipe whose write end only the supervisor has
(LLAMESH_LIFELINE_FD, see llamesh/kit/lifeline.py), or the kernel kills it (tether.py). The main thread starts the children in sessions
of their own, so that Ctrl-C in a terminal reaches only the supervisor, which ends them in order. Children ignore SIGTERM and stop on
SIGINT (llamesh/shutdown.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamesh.background import BackgroundTask
from llamesh.cli.mesh import leftovers, logfiles
from llamesh.cli.mesh.liveness import Liveness, Probe
from llamesh.cli.mesh.restarts import STABLE_SECONDS, Restarts
from llamesh.names import LIFELINE
from llamesh.processes import ProcessId, exit_words
from llamesh.shutdown import STOP

OWN_LOG = "supervisor"
"""Name of the log of a detached supervisor."""
HOUSEKEEPING_SECONDS = 10.0
REFUSED_CODE = 2
"""Exit code of a member that cannot start with its configuration; its last output names the remedy."""
MIN_REPORT_INTERVAL = 60.0
"""Minimum number of seconds between two reports about the same component or task."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Component:
    """One process of the mesh."""

    name: str
    command: tuple[str, ...]
    stage: int
    """Order of the shutdown: stage 0 first; components of one stage together."""
    stop_seconds: float
    """Seconds from the stop signal to the kill."""
    drain: Callable[[], Awaitable[None]] | None = None
    """Called before the stop signal."""
    prepare: Callable[[], object] | None = None
    """Called before each start. OSError postpones the start."""
    probe: Probe | None = None
    """Liveness probe."""
    folder: Path | None = None
    """Its working directory; None: that of the supervisor."""


class Supervisor:
    """Runs components until asked to stop. A component that leaves probes unanswered for `patience` seconds is killed; until
    it listens it is given START_PATIENCES times as long."""

    def __init__(
        self,
        components: Sequence[Component],
        run_dir: Path,
        logs: Path,
        say: Say,
        environment: Mapping[str, str],
        patience: float,
        housekeeping_seconds: float = HOUSEKEEPING_SECONDS,
    ) -> None:
        self._components = components
        self._run_dir = run_dir
        self._logs = logs
        self._say = say
        self._patience = patience
        self._housekeeping_seconds = housekeeping_seconds
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._lives = {component.name: leftovers.Life() for component in components}
        self._recorded = True
        self._told: dict[str, float] = {}
        self._stopping = asyncio.Event()
        self._killing = asyncio.Event()
        self.refused = ""
        """Why a component cannot start with its configuration; if set, the other components were ended."""
        self._lifeline, self._held = os.pipe()
        self._environment = {**environment, LIFELINE: str(self._lifeline)}

    async def run(self) -> None:
        """Start all components and keep them running. Return when all have ended after `stop`."""
        keepers = [asyncio.create_task(self._keep(component)) for component in self._components]
        housekeeping = BackgroundTask(
            "housekeeping of logs and records", self._keep_house, self._report, every=self._housekeeping_seconds
        )
        housekeeping.start()
        await self._stopping.wait()
        await housekeeping.close()
        for stage in sorted({component.stage for component in self._components}):
            await asyncio.gather(*(self._end(item) for item in self._components if item.stage == stage))
        await asyncio.gather(*keepers)
        # Descendants that a component left behind see the end of the mesh here.
        os.close(self._held)
        os.close(self._lifeline)

    def stop(self) -> None:
        """Start the shutdown, in order. Idempotent."""
        self._stopping.set()

    def kill(self) -> None:
        """Kill all components at once."""
        self._stopping.set()
        self._killing.set()

    @property
    def stopping(self) -> bool:
        """Whether the shutdown has begun."""
        return self._stopping.is_set()

    @property
    def killed(self) -> bool:
        """Whether the shutdown was forced."""
        return self._killing.is_set()

    def running(self) -> dict[str, int]:
        """Process ids of the components that run now."""
        return {name: process.pid for name, process in self._running.items()}

    async def _keep(self, component: Component) -> None:
        restarts, life = Restarts(), self._lives[component.name]
        while not self._stopping.is_set():
            started = time.monotonic()
            words = ""
            try:
                code = await self._run_once(component)
            except OSError as error:
                code = error.errno or 1
                words = f"{component.name} cannot be started: {error.strerror or error}"
            if self._stopping.is_set():
                return
            if (
                code == REFUSED_CODE
                and not words
                and not restarts.in_a_row
                and time.monotonic() - started < STABLE_SECONDS
            ):
                # A retry cannot help. A mesh that was ready before goes on with the other components.
                self.refused = self._last_output(component) or f"{component.name} ended with exit code {code}"
                self.stop()
                return
            pause = restarts.pause_after(time.monotonic() - started)
            life.restarts += 1
            life.last_output = words or (self._last_output(component) if code > 0 else "")
            if pause < 1 or self._may_tell(component.name):
                self._told[component.name] = time.monotonic()
                self._say(words or self._exit_message(component, code, pause))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _run_once(self, component: Component) -> int:
        if component.prepare:
            component.prepare()
        log = self._open_log(component)
        try:
            process = await asyncio.create_subprocess_exec(
                *component.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=component.folder,
                pass_fds=(self._lifeline,),
                start_new_session=True,
            )
        finally:
            os.close(log)
        self._running[component.name] = process
        self._lives[component.name].process = ProcessId.of(process.pid)
        self._record()
        probing = self._probing(component, process)
        try:
            return await process.wait()
        finally:
            del self._running[component.name]
            if probing:
                await probing.close()

    def _open_log(self, component: Component) -> int:
        """Open its log; the null device on a full disk, which must not keep a component from running."""
        try:
            return logfiles.open_log(self._logs, component.name)
        except OSError as error:
            self._report(f"log of {component.name}", error)
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def _probing(self, component: Component, process: asyncio.subprocess.Process) -> BackgroundTask | None:
        """Probe a process until closed; kill it if it has not answered for too long."""
        if component.probe is None:
            return None
        probe, liveness, name = component.probe, Liveness(self._patience), component.name

        async def once() -> None:
            probed_at = time.monotonic()
            answer = await probe(liveness.probe_seconds)
            silent_too_long = liveness.count(answer, time.monotonic() - probed_at)
            if silent_too_long and not self._stopping.is_set():
                self._lives[name].silences += 1
                self._say(f"{name} {liveness.words()}; it is killed")
                _signal(process, signal.SIGKILL)
                liveness.begin_again()
            await asyncio.sleep(max(0.0, probed_at + liveness.every - time.monotonic()))

        task = BackgroundTask(f"liveness probe of {name}", once, self._report)
        task.start()
        return task

    async def _end(self, component: Component) -> None:
        process = self._running.get(component.name)
        if process is None:
            return
        ended = asyncio.create_task(process.wait())
        killing = asyncio.create_task(self._killing.wait())
        if component.drain and not self._killing.is_set():
            draining = asyncio.ensure_future(component.drain())
            await asyncio.wait({draining, ended, killing}, return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
        _signal(process, STOP)
        await asyncio.wait({ended, killing}, timeout=component.stop_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            if not self._killing.is_set():
                self._say(f"{component.name} did not end within {component.stop_seconds:g} s; it is killed")
            _signal(process, signal.SIGKILL)
        await ended
        killing.cancel()

    async def _keep_house(self) -> None:
        if not self._recorded:
            self._record()
        for name in (OWN_LOG, *(component.name for component in self._components)):
            logfiles.rotate(self._logs, name)

    def _record(self) -> None:
        """Record what runs. On a full disk the record is missing until housekeeping can write it; the mesh goes on."""
        try:
            leftovers.record(self._run_dir, self._lives)
            self._recorded = True
        except OSError as error:
            self._recorded = False
            self._report("record of processes", error)

    def _report(self, name: str, failure: Exception) -> None:
        if self._may_tell(name):
            self._told[name] = time.monotonic()
            self._say(f"{name} failed and is tried again: {failure}")

    def _may_tell(self, name: str) -> bool:
        return time.monotonic() - self._told.get(name, float("-inf")) > MIN_REPORT_INTERVAL

    def _exit_message(self, component: Component, code: int, pause: float) -> str:
        then = "starting it again" if pause == 0 else f"starting it again in {pause:g} s"
        last = self._last_output(component) if code > 0 else ""
        return f"{component.name} {exit_words(code)}; {then}" + (f"\n    its last output: {last}" if last else "")

    def _last_output(self, component: Component) -> str:
        return "".join(logfiles.last_lines(logfiles.path_of(self._logs, component.name), 1))[:500]


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
