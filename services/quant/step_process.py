"""Runs the program of a step as a child process, and reads its progress and its outcome.

The child has a session of its own, so that it can be killed with all its descendants. Its standard input is a pipe whose other end only
this process has: the child ends when this process ends, even by SIGKILL. On Linux the kernel kills it then, even if it is stopped. Its
standard output has lines of JSON (see `step.report`); its standard error has the messages of llama.cpp.

Invariant: when `run` returns or is cancelled, the child and all its descendants have ended. Memory for the child's output is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from llamesh.kit.config import Settings
from llamesh.processes import exit_words
from llamesh.tether import tethered
from services.quant.step_environment import step_environment
from services.quant.workspace import Workspace

STEP_SECONDS = 24 * 3600.0
"""Deadline of one step. The longest step, the measurement of a large model on a few cores, takes hours."""
MAX_SILENCE_SECONDS = 4 * 3600.0
"""Maximum time without output. The prediction of a text by a large model on a few cores, the longest silence, takes an hour or two."""
DONE, REFUSED, CRASHED, OUTAGE = 0, 1, 70, 75
"""Exit codes of a step's program; see ADR 36."""
MAX_CRASH_TRIES = 3
MAX_OUTAGE_TRIES = 25
"""With the backoff between them, these tries take about ten minutes."""
MAX_LOG = 4_000
"""Maximum number of characters of a step's last lines that are stored."""
_MAX_LINE = 2_000
_LINES = 40
_BLOCK = 1 << 16


@dataclass(slots=True)
class StepProgress:
    """Progress of a step, in its own units."""

    done: int = 0
    total: int = 0


@dataclass(slots=True)
class Outcome:
    """Result of the program of a step."""

    code: int
    """Exit code of the program; negative for a signal."""
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Name of an ErrorReason without prefix; empty if the program gave none."""
    message: str = ""
    log: str = ""
    """Last lines of the program on standard error."""

    @property
    def max_tries(self) -> int:
        """Number of starts after which the step has failed. A killed or crashed program gets fewer than an outage."""
        if self.code == REFUSED:
            return 1
        return MAX_OUTAGE_TRIES if self.code == OUTAGE else MAX_CRASH_TRIES

    def words(self) -> str:
        """Why the program did not succeed, for people."""
        if self.message:
            return self.message
        last = next((line for line in reversed(self.log.splitlines()) if line.strip()), "")
        return f"its program {exit_words(self.code)}" + (f": {last.strip()}" if last else "")


class StepProcess:
    """The program of one step of a job."""

    def __init__(self, settings: Settings, kind: str, job_id: str, of_type: str) -> None:
        self._settings = settings
        self._kind = kind
        self._workspace = Workspace(settings.home, job_id)
        self._words = (kind, job_id, *([of_type] if of_type else []))
        self._log: deque[str] = deque(maxlen=_LINES)
        self._report: dict[str, Any] = {}

    async def run(
        self,
        on_progress: Callable[[int, int], None],
        seconds: float = STEP_SECONDS,
        silence_seconds: float = MAX_SILENCE_SECONDS,
    ) -> Outcome:
        """Run the program to its end. Raises OSError.

        A program that exceeds the deadline is killed, which counts as refused. One that is silent for too long is killed, which counts as a
        crash, because it may have been stopped or wait for a lost answer.
        """
        spec = self._workspace.spec()
        process = await asyncio.create_subprocess_exec(
            # Tied to this process: a step that was stopped (SIGSTOP) before it has the lock of its step would stay if this process died.
            # -P: the folder in which the mesh was started may have a folder `services` of another project.
            *tethered(os.getpid(), sys.executable, "-P", "-m", "services.quant.step", *self._words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=step_environment(
                self._settings,
                os.environ,
                uses_bucket=spec.uses_bucket(self._kind, self._settings),
                asks_download=spec.asks_download(self._kind, self._settings),
            ),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(seconds), asyncio.timeout(silence_seconds) as silence:

                def heard() -> None:
                    # A part may still come after the time is up.
                    if not silence.expired():
                        silence.reschedule(asyncio.get_running_loop().time() + silence_seconds)

                await asyncio.gather(
                    self._listen(process.stdout, heard, on_progress), self._read(process.stderr, heard)
                )
                code = await process.wait()
        except TimeoutError:
            if silence.expired():
                message = f"its program reported nothing for {silence_seconds / 3600:g} hours"
                return Outcome(CRASHED, message=message, log="\n".join(self._log))
            return Outcome(REFUSED, message=f"it took longer than {seconds / 3600:g} hours", log="\n".join(self._log))
        finally:
            # Also after the program has ended: its descendants may still run.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
        error = self._report.get("error", {})
        return Outcome(
            code,
            result=self._report.get("result", {}),
            reason=str(error.get("reason", "")),
            message=str(error.get("message", "")),
            log="\n".join(self._log),
        )

    async def _listen(
        self, stream: asyncio.StreamReader, heard: Callable[[], None], on_progress: Callable[[int, int], None]
    ) -> None:
        async for line in _lines(stream, 1 << 20, heard):
            try:
                report = json.loads(line)
            except ValueError:
                self._log.append(line[:_MAX_LINE])
                continue
            if not isinstance(report, dict):
                continue
            if "done" in report:
                on_progress(report["done"], report["total"])
            else:
                self._report.update(report)

    async def _read(self, stream: asyncio.StreamReader, heard: Callable[[], None]) -> None:
        async for line in _lines(stream, _MAX_LINE, heard):
            self._log.append(line)


async def _lines(stream: asyncio.StreamReader, longest: int, heard: Callable[[], None]) -> AsyncIterator[str]:
    """Yield the lines of a stream, each cut to its first `longest` bytes. Call `heard` for each part that comes."""
    rest = b""
    while block := await stream.read(_BLOCK):
        heard()
        *whole, rest = (rest + block).split(b"\n")
        rest = rest[:longest]
        for line in whole:
            yield line[:longest].decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
