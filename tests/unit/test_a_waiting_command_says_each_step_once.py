"""A command that waits for a Quant job says on a pipe which step runs, once for each."""

from __future__ import annotations

import pytest

from llamesh.cli.job_progress import JobProgress
from llamesh.v1.quant_pb2 import QuantJob, QuantStep, QuantStepKind, QuantStepState

STEPS = [
    *(("FETCH", ""), ("CONVERT", ""), ("IMATRIX", "")),
    *((kind, of_type) for of_type in ("Q4_K_M", "Q8_0") for kind in ("QUANTIZE", "VERIFY", "PUBLISH")),
]


def job_at(kind: str, of_type: str, done: int) -> QuantJob:
    step = QuantStep(
        kind=QuantStepKind.Value(f"QUANT_STEP_KIND_{kind}"),
        type=of_type,
        state=QuantStepState.Value("QUANT_STEP_STATE_RUNNING"),
        done=done,
        total=100,
    )
    return QuantJob(job_id="job_1", steps=[step])


def test_each_step_is_one_line_however_often_its_progress_changes(capsys: pytest.CaptureFixture[str]) -> None:
    said = JobProgress()
    said(QuantJob(job_id="job_1"))
    for kind, of_type in STEPS:
        for done in range(101):
            said(job_at(kind, of_type, done))
    lines = [f"job_1  {kind.lower()} {of_type}".rstrip() + " 0%" for kind, of_type in STEPS]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_pause_between_two_reports_of_a_step_is_no_new_step(capsys: pytest.CaptureFixture[str]) -> None:
    said = JobProgress()
    for job in (job_at("VERIFY", "Q8_0", 1), QuantJob(job_id="job_1"), job_at("VERIFY", "Q8_0", 2)):
        said(job)
    assert len(capsys.readouterr().err.splitlines()) == 1
