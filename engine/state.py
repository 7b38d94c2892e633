"""State file of an engine: one small JSON document, replaced atomically.

A file has the reason of a failure, instead of a pipe, because the file outlives the engine and a restart of the controller. Invariant: a
reader finds a complete document or none.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.failure import EngineError
from llamesh.private_files import write_private


class ReportedPhase(enum.StrEnum):
    """Phase of an engine's life, as the engine reports it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class State:
    """Content of the state file."""

    phase: ReportedPhase
    engine: str
    """Name of the llama.cpp that runs."""
    pid: int
    """Process id of the supervising process."""
    since: float
    """When this phase began, in seconds since 1970."""
    reason: str = ""
    """The name of a `FailureReason`; only if the engine failed."""
    message: str = ""
    log: tuple[str, ...] = ()
    """llama.cpp's last log lines; only if the engine failed."""


@dataclass(slots=True)
class StateFile:
    """Publishes states; without a path it does nothing."""

    path: Path | None
    engine: str
    clock: Callable[[], float]

    def publish(self, phase: ReportedPhase, failure: EngineError | None = None, log: Sequence[str] = ()) -> None:
        """Replace the document. A full disk or a missing directory does not end the engine: it serves without the file."""
        if self.path is None:
            return
        reason, message = (failure.reason.name, failure.message) if failure else ("", "")
        state = State(phase, self.engine, os.getpid(), self.clock(), reason, message, tuple(log) if failure else ())
        with contextlib.suppress(OSError):
            write_private(self.path, json.dumps(asdict(state)).encode(), durable=False)
