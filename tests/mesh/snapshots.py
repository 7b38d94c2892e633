"""Snapshots of processes: the command line and the children of each, read once.

Any process may end between its listing and a question to it. Invariant: a process that ended before all was read is left out, and no
function here raises an error because of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from llamesh.processes import start_time


@dataclass(frozen=True)
class ProcessSnapshot:
    """A process that ran when it was listed."""

    process: psutil.Process
    words: tuple[str, ...]
    """Its command line."""
    children: tuple[psutil.Process, ...]
    """Those that ran."""

    @property
    def pid(self) -> int:
        return self.process.pid


def snapshots(
    wanted: Callable[[Sequence[str]], bool], among: Iterable[psutil.Process] | None = None
) -> list[ProcessSnapshot]:
    """Return the running processes with a wanted command line, by process id. `among`: all processes if None."""
    found = []
    for process in _listed() if among is None else among:
        with contextlib.suppress(psutil.Error):
            words = tuple(process.cmdline())
            if wanted(words) and start_time(process.pid) is not None:
                children = tuple(child for child in process.children() if start_time(child.pid) is not None)
                found.append(ProcessSnapshot(process, words, children))
    return sorted(found, key=lambda each: each.pid)


def _listed() -> Iterator[psutil.Process]:
    """Yield all processes. `psutil.process_iter` may yield a stale object for a process id that was given out again."""
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error):
            yield psutil.Process(pid)
