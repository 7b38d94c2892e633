"""The signals that stop a process: a supervised process stops on SIGINT from its supervisor and ignores SIGTERM.

systemd (with its default KillMode=control-group), a closing session and `kill` of a process group send SIGTERM to every process of a mesh
at once. Invariant: only the supervisor acts on it. It then stops its processes in an order that lets running requests finish. A process
without a supervisor (a container, a test) acts on both signals. SIGKILL and the lifeline end a process at once.

A program that a person runs (`unwound`) ends on SIGTERM and SIGHUP as it ends on Ctrl-C: its blocks end first, so that it leaves no
unfinished file, no link and no child process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from types import FrameType

from llamesh.names import LIFELINE

STOP = signal.SIGINT
"""Stops a process. Envoy, llama-server and the members of the mesh handle it as they handle SIGTERM."""


def is_supervised(environment: Mapping[str, str]) -> bool:
    """Whether this process has a supervisor."""
    return bool(environment.get(LIFELINE))


def ignore_sigterm() -> None:
    """Ignore SIGTERM in this process and in every program that this thread starts.

    The signal is blocked as well, because a program that installs a handler for SIGTERM, such as llama-server, keeps the inherited mask.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def stop_signals(environment: Mapping[str, str]) -> tuple[signal.Signals, ...]:
    """Return the signals that stop this process."""
    return (STOP,) if is_supervised(environment) else (STOP, signal.SIGTERM)


class TerminatedError(SystemExit):
    """Raised in the main thread by a signal that ends the program. asyncio lets it pass, as it does only for SystemExit and Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def unwound(program: Callable[[], int]) -> int:
    """Run a program whose blocks end before SIGTERM or SIGHUP end it. It then dies of the signal, as its parent expects."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # A program that `nohup` has started goes on.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)
    try:
        return program()
    except TerminatedError as error:
        signal.signal(error.number, signal.SIG_DFL)
        os.kill(os.getpid(), error.number)
        raise


def _raise(number: int, _: FrameType | None) -> None:
    # A terminal that is closed and a service manager send both signals. The second one must not interrupt what the first one began.
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _ignore)
    raise TerminatedError(number)


def _ignore(_: int, __: FrameType | None) -> None:
    """Not SIG_IGN: Python reports a signal that waits for its handler while that is replaced by SIG_IGN."""
