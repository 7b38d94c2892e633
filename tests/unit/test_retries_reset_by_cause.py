"""A retry does again what failed and what may be the reason, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.locations import handed_over_directory
from services.quant.jobs import Job
from services.quant.plan import steps_of
from services.quant.resets import done_again, go_on
from services.quant.retries import anew
from services.quant.states import StepKind, StepState
from services.quant.tables import QuantJobRow, QuantStepRow

SOURCE = {("fetch", ""), ("convert", "")}
VARIANT = {("quantize", "Q8_0"), ("verify", "Q8_0"), ("publish", "Q8_0")}
IMATRIX = {("imatrix", "")}


def failed_at(kind: StepKind, reason: str) -> list[QuantStepRow]:
    """The steps of a job of a checkpoint with a matrix, one of which has failed; all later ones were skipped."""
    rows, state = [], StepState.SUCCEEDED
    for position, (each, of_type) in enumerate(steps_of(["Q8_0"], checkpoint=True, importance_matrix=True)):
        if each == kind:
            state = StepState.FAILED
        rows.append(
            QuantStepRow(
                job_id="job_1",
                position=position,
                kind=each,
                type=of_type,
                state=state,
                error_reason=reason if state == StepState.FAILED else "",
                object_key="",
            )
        )
        if state == StepState.FAILED:
            state = StepState.SKIPPED
    return rows


@pytest.mark.parametrize(
    ("kind", "reason", "given", "again"),
    [
        *(
            (StepKind.IMATRIX, reason, True, IMATRIX | VARIANT)
            for reason in ("SOURCE_REFUSED", "CONTENT_MISMATCH", "QUANT_REFUSED", "COMPONENT_UNAVAILABLE", "")
        ),
        (StepKind.IMATRIX, "MODEL_INVALID", True, SOURCE | IMATRIX | VARIANT),
        (StepKind.IMATRIX, "QUANTISATION_FAILED", False, SOURCE | IMATRIX | VARIANT),
        (StepKind.IMATRIX, "USER_DISABLED", False, IMATRIX | VARIANT),
        *(
            step
            for given in (False, True)
            for step in (
                (StepKind.CONVERT, "QUANT_REFUSED", given, SOURCE | IMATRIX | VARIANT),
                (StepKind.QUANTIZE, "QUANTISATION_FAILED", given, SOURCE | VARIANT),
                (StepKind.VERIFY, "QUANTISATION_FAILED", given, VARIANT),
                (StepKind.PUBLISH, "STORE_UNAVAILABLE", given, {("publish", "Q8_0")}),
            )
        ),
    ],
)
def test_a_retry_does_again_what_may_be_the_reason(
    kind: StepKind, reason: str, given: bool, again: set[tuple[str, str]]
) -> None:
    rows = failed_at(kind, reason)
    assert done_again(rows, given_matrix=given) == again
    go_on(rows, given_matrix=given)
    assert {(row.kind, row.type) for row in rows if row.state == StepState.WAITING} == again
    assert {row.state for row in rows} <= {StepState.WAITING, StepState.SUCCEEDED}


def test_the_command_that_starts_a_job_anew_makes_the_same(tmp_path: Path) -> None:
    handed_over = handed_over_directory(tmp_path).as_uri()
    row = QuantJobRow(
        job_id="job_1",
        model_uuid="",
        source=f"{handed_over}/1/tiny%20words",
        shown_source="tiny words",
        matrix_source=f"{handed_over}/2/of%20tiny.dat",
        importance_matrix=True,
        name="tiny",
        types=["Q8_0", "Q4_0"],
        pure=True,
        allow_requantize=False,
        max_kl_divergence=0.25,
    )
    fetched_nothing = Job(row, failed_at(StepKind.FETCH, "SOURCE_REFUSED"))
    assert anew(fetched_nothing, tmp_path, own_text=False) == (
        "llamesh quantize './tiny words' --types Q8_0,Q4_0 --name tiny --imatrix './of tiny.dat' --pure --max-kl 0.25"
    )
    row.source, row.matrix_source, row.model_uuid, row.pure, row.max_kl_divergence = "", "", "tiny-f16", False, 0
    assert (
        anew(Job(row, []), tmp_path, own_text=False)
        == "llamesh quantize tiny-f16 --types Q8_0,Q4_0 --name tiny --importance-matrix"
    )
