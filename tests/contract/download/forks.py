"""Download services that a test starts by fork (`forking`), to kill many of them in little time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.contract.download.replica import SECONDS, Replica


class Forks:
    """The program that forks. One service runs at a time."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self._program = program

    def _line(self) -> str:
        assert self._program.stdout is not None
        return self._program.stdout.readline()

    async def start(self, order: dict[str, object]) -> int:
        """Start a service and return its process id."""
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(order) + "\n")
        self._program.stdin.flush()
        return int(await asyncio.to_thread(self._line))

    async def status(self) -> int:
        """Wait until the service has ended and return its exit status; a negative one is the signal that ended it."""
        return int(await asyncio.wait_for(asyncio.to_thread(self._line), SECONDS))


@contextmanager
def forks() -> Iterator[Forks]:
    """The running program."""
    words = [sys.executable, "-m", "tests.contract.download.forking"]
    program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Forks(program)
    finally:
        program.communicate(timeout=SECONDS)


class ForkedReplica(Replica):
    """A replica that `forks` starts, and that may kill itself at a moment (`moments`)."""

    forks: Forks
    moment: Sequence[object] = ()
    holes = False
    pid = 0

    async def start(self) -> None:
        await self._start_standings(self.settings)
        order = {
            "environment": self._environment,
            "log": str(self.log),
            "moment": list(self.moment),
            "holes": self.holes,
        }
        self.pid = await self.forks.start(order)

    async def end(self, number: signal.Signals) -> int:
        """End it, unless it has ended."""
        if not self.pid:
            return 0
        os.kill(self.pid, number)
        return await self.ended_itself()

    async def ended_itself(self) -> int:
        status, self.pid = await self.forks.status(), 0
        return status
