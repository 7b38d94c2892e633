"""The output of a step's program: its progress and its outcome, as lines of JSON on standard output.

Argo Workflows reads progress as `N/M` from the file that ARGO_PROGRESS_FILE names.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamesh.kit.errors import MeshError, name_of


class StepRefusedError(Exception):
    """The step cannot succeed, even if it is retried. `reason` is the name of an ErrorReason without its prefix."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StepCrashedError(Exception):
    """A program that the step needs died: a retry may succeed."""

    reason = "QUANTISATION_FAILED"


class StepOutageError(Exception):
    """Something outside the step fails now: retries may succeed later."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def step_error(error: MeshError) -> StepRefusedError | StepCrashedError | StepOutageError:
    """Return the outcome of a step whose call to another member failed: a fault of the member is tried again like a crash."""
    if error.code.name == "INTERNAL":
        return StepCrashedError(error.message)
    kind = StepOutageError if error.code.name == "UNAVAILABLE" else StepRefusedError
    return kind(name_of(error.reason), error.message)


def report_progress(done: int, total: int) -> None:
    """Report the progress of the step, in its own units."""
    _write({"done": done, "total": total})
    if file := os.environ.get("ARGO_PROGRESS_FILE"):
        with suppress(OSError):
            Path(file).write_text(f"{done}/{total}", encoding="utf-8")


def report_result(result: Mapping[str, Any]) -> None:
    """Report the result of the step."""
    _write({"result": dict(result)})


def report_error(reason: str, message: str) -> None:
    """Report why the step failed."""
    _write({"error": {"reason": reason, "message": message}})


def _write(value: Mapping[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()
