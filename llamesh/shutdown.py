"""The signals that stop a process: a supervised process stops on SIGINT from its supervisor and ignores SIGTERM.

systemd (with its default KillMode=control-group), a closing session and `kill` of a process group send SIGTERM to every process of a mesh
at once. Invariant: only the supervisor acts on it. It then stops its processes in an order that lets running requests finish. A process
without a supervisor (a container, a test) acts on both signals. SIGKILL and the lifeline end a process at once.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

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
