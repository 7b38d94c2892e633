"""Yields cores to other processes: reads the kernel's counters of this process and moves its threads.

engine/thread_placement.py decides. Invariant: if a counter cannot be read or a setting fails, the threads stay as they are.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.thread_placement import ENVIRONMENT, PACKED_SECONDS, SPREAD_SECONDS, CoreUsage, ThreadPlacement
from llamesh.cores import Cores

REST_SECONDS = 0.1
"""Seconds between two checks of an engine that does not compute."""
RETRY_SECONDS = 10.0
"""Seconds until the next check if the counters could not be read or the placement could not be applied."""
_COMPUTES = 0.1
"""Share of the time for which a thread must run to count as computing."""
_FULL_CHECK_EVERY = 20


class IdleTeam:
    """Team of sleeping OpenMP threads. While it exists, libgomp has more threads than processors, so no thread spins.

    The documentation of GOMP_SPINCOUNT has this rule. It is the only way to change how a running library waits.
    """

    def __init__(self, libgomp: Path, processors: int) -> None:
        self._library = ctypes.CDLL(str(libgomp))
        self._library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        # Every thread of the team calls free(NULL) once, which does nothing.
        self._nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        self._processors = processors
        self._leave: threading.Event | None = None
        self._member: threading.Thread | None = None

    def gather(self) -> bool:
        """Stop all spinning. Return False if the threads cannot be created; then nothing has changed."""
        if self._member is None:
            if not self._has_room():
                return False
            leave, there = threading.Event(), threading.Event()
            member = threading.Thread(target=self._stand, args=(leave, there), daemon=True)
            try:
                member.start()
            except RuntimeError:
                # llama.cpp reached the limit in the meantime: it starts a thread for each connection.
                return False
            self._leave, self._member = leave, member
            there.wait()
        return True

    def disperse(self) -> None:
        """Let threads spin again: the team ends with its first thread."""
        if self._member is not None and self._leave is not None:
            self._leave.set()
            self._member.join()
            self._member = None

    def _has_room(self) -> bool:
        """Return whether the team can be started. libgomp ends the process if it exceeds a limit of threads."""
        go = threading.Event()
        tried = [threading.Thread(target=go.wait, daemon=True) for _ in range(self._processors + 1)]
        started = []
        try:
            for each in tried:
                each.start()
                started.append(each)
        except RuntimeError:
            return False
        finally:
            go.set()
            for each in started:
                each.join()
        return True

    def _stand(self, leave: threading.Event, there: threading.Event) -> None:
        self._library.GOMP_parallel(self._nothing, None, self._processors + 1, 0)
        there.set()
        leave.wait()


@dataclass(frozen=True, slots=True)
class _Counters:
    """Present values of the counters, in seconds."""

    at: float
    threads: Mapping[int, tuple[float, float]]
    """For each thread: seconds on a core, seconds of waiting for a core."""
    busy: Mapping[int, float]


class KernelCounters:
    """Reads the kernel's counters and settings of this process."""

    def __init__(self, cores: Cores, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._allowed = frozenset(each for group in cores.groups for each in group)
        self._computing: Sequence[int] = ()
        self._checks = 0
        self._last: _Counters | None = None
        self._used = 0.0

    def readable(self) -> bool:
        """Return whether the kernel has the needed counters."""
        return bool(self._threads([os.getpid()])) and self._allowed <= self._busy().keys()

    def computes(self) -> bool:
        """Return whether this process used processor time since the last call. Cheap, for an idle engine."""
        used, self._used = self._used, time.process_time()
        return self._used - used > _COMPUTES * REST_SECONDS

    def forget(self) -> None:
        """Drop the last values, so that the next interval starts from the next call."""
        self._last, self._checks = None, 0

    def usage(self) -> CoreUsage | None:
        """Return the use since the last call; None on the first call."""
        # An engine has a thread for each connection. Some checks read all threads, the others only the computing ones.
        all_of_them = self._checks % _FULL_CHECK_EVERY < 2
        self._checks += 1
        threads = self._threads(self._all() if all_of_them else self._computing)
        last, now = self._last, _Counters(time.monotonic(), threads, self._busy())
        self._last = now
        if last is None:
            return None
        seconds = now.at - last.at
        spent = {
            each: (ran - last.threads[each][0], waited - last.threads[each][1])
            for each, (ran, waited) in now.threads.items()
            if each in last.threads
        }
        self._computing = [each for each, (ran, waited) in spent.items() if ran + waited > _COMPUTES * seconds]
        return CoreUsage(
            seconds,
            sum(spent[each][0] for each in self._computing),
            sum(spent[each][1] for each in self._computing),
            {each: busy - last.busy.get(each, busy) for each, busy in now.busy.items()},
        )

    def place(self, processors: frozenset[int] | None) -> None:
        """Restrict all threads to these processors, or allow all processors again."""
        for each in self._all():
            try:
                os.sched_setaffinity(each, processors or self._allowed)
            except OSError:
                continue  # The thread has ended, or the allowed set was narrowed from outside and the kernel enforces that.

    def _all(self) -> list[int]:
        return [int(each.name) for each in (self._proc / "self" / "task").iterdir()]

    def _threads(self, threads: Sequence[int]) -> dict[int, tuple[float, float]]:
        found = {}
        for each in threads:
            try:
                ran, waited, _ = (
                    (self._proc / "self" / "task" / str(each) / "schedstat").read_text(encoding="utf-8").split()
                )
            except (OSError, ValueError):
                continue
            found[each] = (int(ran) / 1e9, int(waited) / 1e9)
        return found

    def _busy(self) -> dict[int, float]:
        text = _text(self._proc / "stat")
        tick = os.sysconf("SC_CLK_TCK")
        found = {}
        for number, user, _nice, system, _idle, _wait, irq, softirq in re.findall(
            r"^cpu(\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", text, re.MULTILINE
        ):
            found[int(number)] = (int(user) + int(system) + int(irq) + int(softirq)) / tick
        return found


def loaded_libgomp(maps: str) -> Path | None:
    """Return the path of the loaded libgomp from the text of /proc/self/maps, because a package may contain its own."""
    found = re.search(r"(/\S*libgomp\S*)$", maps, re.MULTILINE)
    return Path(found[1]) if found else None


class ThreadYielder:
    """Moves the threads of this process as `ThreadPlacement` decides."""

    def __init__(self, placement: ThreadPlacement, machine: KernelCounters, team: IdleTeam) -> None:
        self._placement = placement
        self._counters = machine
        self._team = team

    def adjust(self) -> float:
        """Check once, and move the threads if necessary. Return the seconds until the next check."""
        try:
            if self._placement.packed is None and not self._counters.computes():
                self._counters.forget()
                return REST_SECONDS
            usage = self._counters.usage()
            if usage is None or self._apply(usage):
                return SPREAD_SECONDS if self._placement.packed is None else PACKED_SECONDS
        except OSError:
            self._counters.forget()
        return RETRY_SECONDS

    def _apply(self, usage: CoreUsage) -> bool:
        """Apply the placement. Return False if that fails; then the threads are as before."""
        before = self._placement.packed
        self._placement.update(usage)
        now = self._placement.packed
        if now == before:
            return True
        if now is None:
            self._team.disperse()
        elif not self._team.gather():
            self._placement.packed = None
            return False
        self._counters.place(now)
        self._counters.forget()
        return True


def yielding(cores: Cores, environment: Mapping[str, str]) -> Callable[[int], ThreadYielder] | None:
    """Return a factory of the yielder for this number of threads, to call once llama.cpp is loaded; None if yielding is impossible.

    Yielding works on Linux with a llama.cpp that uses libgomp, unless the user has set how threads wait.
    """
    libgomp = loaded_libgomp(_text(Path("/proc/self/maps")))
    machine = KernelCounters(cores)
    if (
        libgomp is None
        or not machine.readable()
        or any(environment.get(name) != ENVIRONMENT[name] for name in ENVIRONMENT)
    ):
        return None
    team = IdleTeam(libgomp, cores.processors)
    chance = random.Random()  # noqa: S311 - decides between equals
    return lambda threads: ThreadYielder(ThreadPlacement(cores, threads, chance), machine, team)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
