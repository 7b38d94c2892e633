"""Exponential backoff for restarts of an engine: at once after a single failure, with growing pauses while it fails again.

An engine that was ready for a while starts with a clean history. A start that failed before there was a process (a full disk, no free
descriptor) is a failure of the machine: it is retried after a short pause and does not count for the backoff.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controller.runtimes import CANNOT_START, EngineExit

FIRST_PAUSE = 1.0
"""Seconds before the second restart in a row; the first is at once."""
MAX_PAUSE = 60.0
"""Longest pause before a restart, in seconds."""
MAX_START_PAUSE = 5.0
"""Longest pause after a start that failed before there was a process, in seconds."""
STEADY_SECONDS = 60.0
"""Seconds of readiness after which an engine's next exit starts a new series of failures."""
FAILING_AFTER = 3
"""Failures in a row after which a server counts as failing."""


@dataclass(frozen=True, slots=True)
class RestartHistory:
    """History of a replica's engine failures since its spec last changed."""

    restarts: int = 0
    """Number of unrequested exits."""
    failures: int = 0
    """Number of consecutive unrequested exits."""
    engine_failures: int = 0
    """Number of consecutive exits that the engine itself caused. The backoff grows with it."""
    not_before: float = 0.0
    """Earliest monotonic time of the next start."""
    reason: str = ""
    """Reason of the last unrequested exit."""
    message: str = ""
    causes: Mapping[str, int] = field(default_factory=dict)
    """How often each reason was the cause of a restart. The set of reasons is small: see `EngineExit`."""

    @property
    def failing(self) -> bool:
        """Whether a restart has already failed."""
        return self.failures >= FAILING_AFTER

    @property
    def summary(self) -> str:
        """Summary of the failures for people; empty if there were none."""
        if not self.restarts:
            return ""
        causes = ", ".join(f"{reason} {count}" for reason, count in sorted(self.causes.items()))
        return f"started again {self.restarts} times ({causes}); the last cause: {self.message}"


def after_exit(history: RestartHistory, ended: EngineExit, ready_for: float | None, now: float) -> RestartHistory:
    """Return the history after an engine's exit. `ready_for`: seconds for which it was ready; None if it never was."""
    if ended.requested:
        return history
    if ready_for is not None and ready_for >= STEADY_SECONDS:
        history = after_steady(history)
    failures = history.failures + 1
    causes = {**history.causes, ended.reason: history.causes.get(ended.reason, 0) + 1}
    if ended.reason == CANNOT_START:
        engine_failures, seconds = history.engine_failures, min(pause(failures), MAX_START_PAUSE)
    else:
        engine_failures = history.engine_failures + 1
        seconds = pause(engine_failures)
    return RestartHistory(
        history.restarts + 1, failures, engine_failures, now + seconds, ended.reason, ended.message, causes
    )


def after_ready(history: RestartHistory) -> RestartHistory:
    """Return the history after an engine became ready, without the machine's failures."""
    return replace(history, failures=history.engine_failures)


def after_steady(history: RestartHistory) -> RestartHistory:
    """Return the history after an engine was ready for STEADY_SECONDS: past failures no longer count."""
    return replace(history, failures=0, engine_failures=0)


def pause(failures: int) -> float:
    """Return the seconds to wait after this number of consecutive failures."""
    if failures <= 1:
        return 0.0
    return float(min(FIRST_PAUSE * 2 ** min(failures - 2, 16), MAX_PAUSE))
