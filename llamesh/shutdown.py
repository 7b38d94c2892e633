"""How a supervised process is asked to end: SIGINT from the process that started it, never SIGTERM.

systemd (KillMode=control-group, its default), a closing session and `kill` of a process group send SIGTERM to every process of a mesh at
the same moment. Invariant: only the supervisor acts on it; it then ends its processes in the order that lets running requests finish. A
process without a supervisor (a container, a test) acts on both signals. `kill -9` and the lifeline end every process at once.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

from llamesh.names import LIFELINE

STOP = signal.SIGINT
"""Asks a process to end. Envoy, llama-server and the members of the mesh handle it as they handle SIGTERM."""


def is_supervised(environment: Mapping[str, str]) -> bool:
    """Whether a supervisor started this process and ends it."""
    return bool(environment.get(LIFELINE))


def ignore_sigterm() -> None:
    """Ignore SIGTERM in this process and in every program that it starts from this thread.

    A program that handles SIGTERM itself, such as llama-server, replaces an inherited disposition but keeps the inherited signal mask:
    for such programs the signal is blocked as well.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def stop_signals(environment: Mapping[str, str]) -> tuple[signal.Signals, ...]:
    """The signals that ask this process to end."""
    return (STOP,) if is_supervised(environment) else (STOP, signal.SIGTERM)
