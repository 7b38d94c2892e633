"""What the program of a step says: its progress and its outcome, as lines of JSON on standard output.

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


class StepRefusedError(Exception):
    """The step cannot be done, whatever is tried again. `reason` is the name of an ErrorReason without its prefix."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StepCrashedError(Exception):
    """A program that the step needs died: another try may succeed."""

    reason = "QUANTISATION_FAILED"


class StepOutageError(Exception):
    """Something outside the step does not work now: it is worth to try again for a while."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def tell_progress(done: int, total: int) -> None:
    """Say how far the step is, in its own units."""
    _say({"done": done, "total": total})
    if file := os.environ.get("ARGO_PROGRESS_FILE"):
        with suppress(OSError):
            Path(file).write_text(f"{done}/{total}")


def tell_result(result: Mapping[str, Any]) -> None:
    """Say what the step has found."""
    _say({"result": dict(result)})


def tell_error(reason: str, message: str) -> None:
    """Say why the step is not done."""
    _say({"error": {"reason": reason, "message": message}})


def _say(value: Mapping[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()
