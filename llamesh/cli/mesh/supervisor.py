"""Keeps the mesh's processes running and ends them in order.

Invariant: nothing outlives the supervisor. Every child holds the read end of a pipe whose write end only the supervisor has
(LLAMESH_LIFELINE_FD, see llamesh/kit/lifeline.py), or is ended by the kernel (tether.py). Children are started from the main
thread, in sessions of their own, so that Ctrl-C in a terminal reaches the supervisor only and the order of the end is kept.
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

from llamesh.cli.mesh import leftovers, logfiles
from llamesh.cli.mesh.restarts import STABLE_SECONDS, Restarts
from llamesh.processes import ProcessId, exit_words

LIFELINE = "LLAMESH_LIFELINE_FD"
ROTATE_SECONDS = 10.0
REFUSED_CODE = 2
"""What a member ends with that may not start as it is configured; its last words say what to do."""
TOLD_SECONDS = 60.0
"""A component that keeps ending is spoken of at most so often."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Component:
    """One process of the mesh."""

    name: str
    command: tuple[str, ...]
    stage: int
    """Order of the end: stage 0 first; those of a stage together."""
    stop_seconds: float
    """How long it may take to end after SIGTERM before it is killed."""
    drain: Callable[[], Awaitable[None]] | None = None
    """Done before SIGTERM."""


class Supervisor:
    """Runs components until asked to stop."""

    def __init__(
        self,
        components: Sequence[Component],
        run_dir: Path,
        logs: Path,
        say: Say,
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._components = components
        self._run_dir = run_dir
        self._logs = logs
        self._say = say
        self._clock = clock
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._identities: dict[str, ProcessId] = {}
        self._stopping = asyncio.Event()
        self._killing = asyncio.Event()
        self.refused = ""
        """Why a component may not start as it is configured; the others were ended then."""
        self._lifeline, self._held = os.pipe()
        self._environment = {**environment, LIFELINE: str(self._lifeline)}

    async def run(self) -> None:
        """Start everything, keep it running, and return when all has ended after `stop`."""
        keepers = [asyncio.create_task(self._keep(component)) for component in self._components]
        housekeeping = asyncio.create_task(self._keep_logs_small())
        await self._stopping.wait()
        housekeeping.cancel()
        for stage in sorted({component.stage for component in self._components}):
            await asyncio.gather(*(self._end(item) for item in self._components if item.stage == stage))
        await asyncio.gather(*keepers)
        # Whatever a component may have left below itself reads the end of the mesh here.
        os.close(self._held)
        os.close(self._lifeline)
        leftovers.record(self._run_dir, ())

    def stop(self) -> None:
        """End in order; a second time: at once."""
        if self._stopping.is_set():
            self.kill()
        self._stopping.set()

    def kill(self) -> None:
        """End everything at once."""
        self._stopping.set()
        self._killing.set()

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._stopping.is_set()

    @property
    def killed(self) -> bool:
        """Whether the end was forced."""
        return self._killing.is_set()

    def running(self) -> dict[str, int]:
        """Process ids of the components that run now."""
        return {name: process.pid for name, process in self._running.items()}

    async def _keep(self, component: Component) -> None:
        restarts = Restarts()
        told = float("-inf")
        while not self._stopping.is_set():
            started = self._clock()
            try:
                code = await self._run_once(component)
            except OSError as error:
                code = error.errno or 1
                self._say(f"{component.name} cannot be started: {error.strerror}")
            if self._stopping.is_set():
                return
            if code == REFUSED_CODE and not restarts.in_a_row and self._clock() - started < STABLE_SECONDS:
                # No other try would end differently. A mesh that was up once goes on with what runs.
                self.refused = self._last_words(component) or f"{component.name} ended with exit code {code}"
                self.stop()
                return
            pause = restarts.pause_after(self._clock() - started)
            if pause < 1 or self._clock() - told > TOLD_SECONDS:
                told = self._clock()
                self._say(self._obituary(component, code, pause))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _run_once(self, component: Component) -> int:
        log = logfiles.open_log(self._logs, component.name)
        try:
            process = await asyncio.create_subprocess_exec(
                *component.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=(self._lifeline,),
                start_new_session=True,
            )
        finally:
            os.close(log)
        self._running[component.name] = process
        self._identities[component.name] = ProcessId.of(process.pid)
        leftovers.record(self._run_dir, self._identities.values())
        try:
            return await process.wait()
        finally:
            del self._running[component.name]

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
        _signal(process, signal.SIGTERM)
        await asyncio.wait({ended, killing}, timeout=component.stop_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            if not self._killing.is_set():
                self._say(f"{component.name} did not end within {component.stop_seconds:g} s; it is killed")
            _signal(process, signal.SIGKILL)
        await ended
        killing.cancel()

    async def _keep_logs_small(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_SECONDS)
            for component in self._components:
                logfiles.rotate(self._logs, component.name)

    def _obituary(self, component: Component, code: int, pause: float) -> str:
        then = "starting it again" if pause == 0 else f"starting it again in {pause:g} s"
        last = self._last_words(component) if code > 0 else ""
        return f"{component.name} {exit_words(code)}; {then}" + (f"\n    its last words: {last}" if last else "")

    def _last_words(self, component: Component) -> str:
        return "".join(logfiles.last_lines(logfiles.path_of(self._logs, component.name), 1))[:500]


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
