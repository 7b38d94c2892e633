"""Runs llama.cpp as a child process that cannot outlive this one, and stores and forwards its log.

Invariant: once `start` has returned, any death of this process ends the child (on Linux by the kernel; elsewhere by the end of the pipe
that the embedded engine reads).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from engine.failure import EngineError, FailureReason
from llamesh.shutdown import STOP
from llamesh.tether import kill_with_parent

LOG_LINES = 40
"""Lines of llama.cpp's log that are stored to explain a failure."""
_STOP_SECONDS = 3.0
"""Seconds that llama.cpp may take to end once it is idle."""
_OOM_SCORE = b"500"
"""If memory runs out, the kernel kills an engine, which is started again, instead of Envoy or a database."""


class Child:
    """A running llama.cpp process."""

    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket) -> None:
        self.channel = channel
        """The other end of its standard input: the embedded engine sends its listening socket through it, and ends when it is closed."""
        self._process = process
        self._log: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._partial = b""
        self._copying = asyncio.create_task(self._copy_log())

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start a command in its own session, because this process handles a terminal's Ctrl-C. Raises EngineError(NO_LLAMA_CPP)."""
        parent = os.getpid()
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                preexec_fn=lambda: _die_with(parent),
            )
        except OSError as error:
            ours.close()
            raise EngineError(FailureReason.NO_LLAMA_CPP, f"{command[0]} cannot be run: {error}") from error
        finally:
            theirs.close()
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def log(self) -> Sequence[str]:
        """Last lines of the log."""
        return tuple(self._log)

    async def wait(self) -> int:
        """Wait for the exit and for the last log line. Return the exit code, or the negative number of the signal that killed it."""
        # Shielded, so that a cancelled waiter does not stop the copying for the other waiters.
        await asyncio.shield(self._copying)
        return await self._process.wait()

    async def stop(self) -> None:
        """Terminate the process; kill it if it does not end."""
        self._signal(STOP)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        await self._copying

    def kill(self) -> None:
        """Kill the process at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _copy_log(self) -> None:
        """Copy the log to stderr as it arrives, and keep its last lines."""
        stream = self._process.stdout
        assert stream is not None
        while chunk := await stream.read(65536):
            # The reader of stderr may be gone; the engine keeps running.
            with contextlib.suppress(OSError):
                os.write(2, chunk)
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            self._log.extend(line.decode(errors="replace") for line in lines if line.strip())
        if self._partial.strip():
            self._log.append(self._partial.decode(errors="replace"))


def _die_with(parent: int) -> None:
    """Make the kernel kill the child when its parent dies, and kill the child first when memory runs out. Runs in the child before exec."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            kill_with_parent()
        with contextlib.suppress(OSError):
            score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(score, _OOM_SCORE)
            os.close(score)
        if os.getppid() != parent:
            os._exit(1)
