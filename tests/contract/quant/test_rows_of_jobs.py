"""The rows of jobs: a run of an earlier attempt changes nothing, and a row that names an object without a record stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from itertools import count
from typing import cast

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.errors import MeshError, Reason, name_of
from services.quant import job_limits
from services.quant import jobs as jobs_module
from services.quant.job_changes import JobChanges
from services.quant.job_run import JobRuns
from services.quant.jobs import Job, Jobs
from services.quant.messages import job_message
from services.quant.states import JobState, StepState
from services.quant.step_process import DONE, REFUSED, Outcome, StepProgress
from services.quant.step_rows import StepRows
from services.quant.tables import QuantJobRow, QuantStepRow
from services.quant.variants import Variants
from services.quant.workspace import Workspace

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = f"models/{'0' * 64}-{'1' * 16}.gguf"


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    opened = open_database(settings, "quant")
    await opened.migrate("services.quant")
    yield opened
    await opened.close()


@pytest.fixture
def jobs(database: Database) -> Jobs:
    numbers = count(1)
    return Jobs(database, lambda: NOW, JobChanges(), lambda: f"job_{next(numbers)}")


@pytest.fixture
def rows(database: Database) -> StepRows:
    return StepRows(database, lambda: NOW, JobChanges())


async def submitted(jobs: Jobs, *types: str, name: str = "tiny", text: str = "") -> Job:
    return await jobs.create(
        QuantJobRow(
            model_uuid="tiny-f16",
            source_sha256="0" * 64,
            name=name,
            types=list(types or ("Q8_0",)),
            allow_requantize=False,
            pure=False,
            calibration_text=text,
            max_kl_divergence=0,
            state=JobState.QUEUED,
            attempt=1,
            owner="ada",
            owner_uid="usr_ada",
            requester_uid="usr_ada",
            request_id="",
            request_digest="",
        )
    )


async def seen(jobs: Jobs, job_id: str) -> tuple[object, ...]:
    """Everything that a run may change."""
    job = await jobs.get(job_id)
    steps = [(step.state, step.done, step.tries, step.log, step.error_message, step.result) for step in job.steps]
    return job.row.state, job.row.attempt, steps


TRANSITIONS: dict[str, Callable[[StepRows, Job, QuantStepRow], Awaitable[object]]] = {
    "begin": lambda rows, job, step: rows.begin(job, step),
    "progress": lambda rows, job, step: rows.progress(job, step, 1, 2),
    "report": lambda rows, job, step: rows.report(job, step, StepProgress(1, 2), tries=2, log="late"),
    "succeed": lambda rows, job, step: rows.succeed(job, step, Outcome(DONE, result={"size": 1}), StepProgress(1, 1)),
    "fail": lambda rows, job, step: rows.fail(job, step, Outcome(REFUSED, message="late")),
    "end": lambda rows, job, _: rows.end(job, JobState.FAILED),
}


@pytest.mark.parametrize("transition", TRANSITIONS)
async def test_a_run_of_an_earlier_attempt_changes_nothing(jobs: Jobs, rows: StepRows, transition: str) -> None:
    first = await submitted(jobs)
    await jobs.cancel(first.row.job_id)
    await jobs.retry(first.row.job_id, "usr_ada")
    before = await seen(jobs, first.row.job_id)
    await TRANSITIONS[transition](rows, first, first.steps[0])
    assert await seen(jobs, first.row.job_id) == before
    again = await jobs.get(first.row.job_id)
    await TRANSITIONS[transition](rows, again, again.steps[0])
    assert await seen(jobs, first.row.job_id) != before


async def test_a_run_of_an_earlier_attempt_does_not_reset_the_steps_of_the_next(jobs: Jobs, rows: StepRows) -> None:
    first = await submitted(jobs)
    await jobs.cancel(first.row.job_id)
    again = await jobs.retry(first.row.job_id, "usr_ada")
    await rows.begin(again, again.steps[0])
    await rows.restart(first)
    assert (await jobs.get(first.row.job_id)).steps[0].state == StepState.RUNNING


async def test_a_job_whose_row_names_an_object_without_a_record_is_removed_only_after_the_object(
    jobs: Jobs, rows: StepRows
) -> None:
    job = await submitted(jobs)
    await rows.begin(job, job.steps[-1], object_key=KEY)
    await jobs.cancel(job.row.job_id)
    with pytest.raises(MeshError, match="being cleaned up") as refused:
        await jobs.delete(job.row.job_id)
    assert name_of(refused.value.reason) == "QUANT_JOB_NOT_ENDED"
    (left,) = await rows.unrecorded()
    assert left.object_key == KEY
    await rows.forget_object(left)
    await jobs.delete(job.row.job_id)
    with pytest.raises(MeshError, match="there is no job"):
        await jobs.get(job.row.job_id)


async def test_the_error_of_a_job_that_ended_for_the_rights_of_its_user_names_them(jobs: Jobs, rows: StepRows) -> None:
    """A type has failed before: a retry by the same user would not go on."""
    job = await submitted(jobs, "Q8_0", "Q4_0")
    fetched, quantised = job.steps[:2]
    await rows.succeed(job, fetched, Outcome(DONE), StepProgress())
    await rows.fail(job, quantised, Outcome(REFUSED, message="it failed"))
    assert job_message(await jobs.get(job.row.job_id)).error.message == "it failed"
    refusal = MeshError(Reason.ERROR_REASON_USER_DISABLED, "the user ada is disabled", {"username": "ada"})
    await rows.refuse(job.row, refusal)
    message = job_message(await jobs.get(job.row.job_id))
    assert message.error.reason == "USER_DISABLED"
    assert message.steps[1].error.message == "it failed"


async def test_a_job_that_another_user_has_taken_over_does_not_end_for_the_rights_of_the_first(
    jobs: Jobs, rows: StepRows
) -> None:
    """The worker has decided, and the retry of ben is answered before it writes."""
    job = await submitted(jobs)
    refusal = MeshError(Reason.ERROR_REASON_USER_DISABLED, "the user ada is disabled", {"username": "ada"})
    await jobs.retry(job.row.job_id, "usr_ben")
    assert not await rows.refuse(job.row, refusal)
    taken = (await jobs.get(job.row.job_id)).row
    assert taken.state == JobState.QUEUED
    assert await rows.refuse(taken, refusal)
    assert (await jobs.get(job.row.job_id)).row.state == JobState.FAILED


async def test_a_job_that_was_retried_since_the_rows_were_read_keeps_its_files(
    settings: Settings, jobs: Jobs, rows: StepRows
) -> None:
    job = await submitted(jobs)
    folder = Workspace(settings.home, job.row.job_id).folder
    folder.mkdir(parents=True)
    runs = JobRuns(settings, jobs, rows, cast("Variants", None), JobChanges())
    # The worker has read that no job is active.
    await runs.clear([])
    assert folder.exists()
    await runs.clear([], ended=job.row.job_id)
    assert not folder.exists()


async def test_a_job_counts_for_the_user_who_has_retried_it(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_limits, "MAX_ACTIVE", 1)
    first = await submitted(jobs)
    await jobs.cancel(first.row.job_id)
    await jobs.retry(first.row.job_id, "usr_ben")
    second = await submitted(jobs, name="other")
    # It has not ended, and is one of ben's: ada has no room for it, and a repeated retry changes nothing.
    with pytest.raises(MeshError, match="which is the most"):
        await jobs.retry(first.row.job_id, "usr_ada")
    assert (await jobs.retry(first.row.job_id, "usr_ben")).row.attempt == 2
    with pytest.raises(MeshError, match="which is the most"):
        await jobs.retry(second.row.job_id, "usr_ben")


async def test_the_oldest_jobs_that_ended_early_are_removed(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_KEPT", 2)
    made = [(await submitted(jobs, name=f"m{number}")).row.job_id for number in range(5)]
    for job_id in made[:4]:
        await jobs.cancel(job_id)
    await jobs.remove_surplus("usr_ben")
    assert len(await jobs.ids()) == 5
    await jobs.remove_surplus("usr_ada")
    assert sorted(await jobs.ids()) == made[2:]


async def test_a_job_that_must_be_cleaned_up_is_removed_later(
    jobs: Jobs, rows: StepRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_KEPT", 0)
    job = await submitted(jobs)
    publish = job.steps[-1]
    await rows.begin(job, publish, object_key=KEY)
    await jobs.cancel(job.row.job_id)
    await jobs.remove_surplus("usr_ada")
    assert len(await jobs.ids()) == 1
    await rows.forget_object((await jobs.get(job.row.job_id)).steps[-1])
    await jobs.remove_surplus("usr_ada")
    assert not await jobs.ids()


async def test_a_job_that_succeeded_drops_its_calibration_text(jobs: Jobs, rows: StepRows) -> None:
    job = await submitted(jobs, text="words of the user")
    await rows.begin(job, job.steps[0])
    assert await jobs.calibration_text(job.row.job_id) == "words of the user"
    await rows.end(job, JobState.SUCCEEDED)
    assert await jobs.calibration_text(job.row.job_id) == ""
