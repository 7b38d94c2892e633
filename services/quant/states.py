"""The states of jobs and steps, and the kinds of steps. The programs of the steps need them without the tables."""

from __future__ import annotations

import enum


class JobState(enum.StrEnum):
    """State of a job. The names are those of QuantJobState without its prefix."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ACTIVE = (JobState.QUEUED, JobState.RUNNING)
"""States of a job that has not ended."""


class StepState(enum.StrEnum):
    """State of a step. The names are those of QuantStepState without its prefix."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class StepKind(enum.StrEnum):
    """Kind of a step; also the word on the command line of its program."""

    FETCH = "fetch"
    CONVERT = "convert"
    IMATRIX = "imatrix"
    QUANTIZE = "quantize"
    VERIFY = "verify"
    PUBLISH = "publish"
