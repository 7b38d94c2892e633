"""The state file of an engine: one small JSON document, replaced atomically.

The file outlives both the engine and a controller that is restarted, so it, not a pipe, is where the reason of a failure is
found. Invariant: a reader finds a whole document or none.
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


class ReportedPhase(enum.StrEnum):
    """Where an engine is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class State:
    """The document."""

    phase: ReportedPhase
    engine: str
    """Which llama.cpp, in words."""
    pid: int
    """The supervising process."""
    since: float
    """When this phase began, in seconds since 1970."""
    reason: str = ""
    """The name of a `Reason`; only where failed."""
    message: str = ""
    log: tuple[str, ...] = ()
    """llama.cpp's last lines; only where failed."""


@dataclass(slots=True)
class StateFile:
    """Publishes states; without a path it does nothing."""

    path: Path | None
    engine: str
    clock: Callable[[], float]

    def publish(self, phase: ReportedPhase, failure: EngineError | None = None, log: Sequence[str] = ()) -> None:
        """Replace the document. A full disk or a directory that is gone does not end an engine: it serves without it."""
        if self.path is None:
            return
        reason, message = (failure.reason.name, failure.message) if failure else ("", "")
        state = State(phase, self.engine, os.getpid(), self.clock(), reason, message, tuple(log) if failure else ())
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_text(json.dumps(asdict(state)))
            unfinished.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
