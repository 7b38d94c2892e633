"""Jobs end when the user whose rights they have may not have them any more, and go on while nobody can be asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llamesh.v1 import gateway_pb2, quant_pb2
from services.quant.service import run
from services.quant.step_rows import StepRows
from tests.contract.conftest import AsCaller, StartMain, StartStandings
from tests.contract.patience import PATIENCE
from tests.contract.quant.conftest import Quant, states
from tests.standings import FakeStandings

FAILED, SUCCEEDED = quant_pb2.QUANT_JOB_STATE_FAILED, quant_pb2.QUANT_JOB_STATE_SUCCEEDED


@pytest.fixture
async def users(quant: Quant, start_standings: StartStandings, as_caller: AsCaller) -> FakeStandings:
    """The users; the caller is cyn."""
    quant.caller = as_caller("cyn", "manage")
    return await start_standings(quant.settings)


async def hanging(quant: Quant) -> quant_pb2.QuantJob:
    """A job whose quantiser runs until its fault is removed."""
    quant.fault.write_text("hang")
    job = await quant.create("Q8_0", "Q4_0")
    return await quant.until(job.job_id, lambda job: job.steps[1].done)


async def test_a_job_ends_in_its_step_when_its_user_is_disabled(
    quant: Quant, users: FakeStandings, as_caller: AsCaller
) -> None:
    job = await hanging(quant)
    users.put("cyn", disabled=True)
    quant.caller = as_caller("ada", "manage")
    job = await quant.ended(job.job_id)
    assert (job.state, job.error.reason) == (FAILED, "USER_DISABLED")
    assert job.error.message == "the user cyn, whose rights this job has, is disabled: another user may retry it"
    assert states(job)[:3] == ["fetch SUCCEEDED", "quantize Q8_0 FAILED", "verify Q8_0 SKIPPED"]
    assert states(job)[4] == "quantize Q4_0 SKIPPED"
    await quant.tidy(0)


async def test_a_job_ends_that_waits_for_its_turn(quant: Quant, users: FakeStandings, as_caller: AsCaller) -> None:
    running = await hanging(quant)
    quant.caller = as_caller("bob", "manage")
    waiting = await quant.create("Q6_K")
    users.remove("bob")
    quant.caller = as_caller("ada", "manage")
    job = await quant.ended(waiting.job_id)
    assert (job.state, job.error.reason, job.steps[0].tries) == (FAILED, "USER_NOT_FOUND", 0)
    assert (await quant.job(running.job_id)).state == quant_pb2.QUANT_JOB_STATE_RUNNING


async def test_a_job_of_a_demoted_user_ends(quant: Quant, users: FakeStandings, as_caller: AsCaller) -> None:
    job = await hanging(quant)
    users.put("cyn", role=gateway_pb2.ROLE_INFERENCE)
    quant.caller = as_caller("ada", "manage")
    assert (await quant.ended(job.job_id)).error.reason == "SCOPE_MISSING"


async def test_another_user_may_go_on_with_the_job_where_it_was_ended(
    quant: Quant, users: FakeStandings, as_caller: AsCaller
) -> None:
    job = await hanging(quant)
    users.put("cyn", disabled=True)
    quant.caller = as_caller("ada", "manage")
    fetched = (await quant.ended(job.job_id)).steps[0].end_time
    quant.fault.unlink()
    await quant.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=job.job_id))
    job = await quant.ended(job.job_id)
    assert (job.state, job.owner, job.steps[0].end_time) == (SUCCEEDED, "cyn", fetched)


async def test_a_retry_of_a_job_that_runs_gives_it_the_rights_of_that_user(
    quant: Quant, users: FakeStandings, as_caller: AsCaller
) -> None:
    job = await hanging(quant)
    quant.caller = as_caller("ada", "manage")
    await quant.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=job.job_id))
    users.put("cyn", disabled=True)
    users.put("ada", disabled=True)
    quant.caller = as_caller("bob", "manage")
    job = await quant.ended(job.job_id)
    assert job.error.message == "the user ada, whose rights this job has, is disabled: another user may retry it"


async def test_a_job_that_is_taken_over_while_it_is_ended_goes_on_where_it_was(
    quant: Quant, users: FakeStandings, as_caller: AsCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await hanging(quant)
    quant.caller = as_caller("ada", "manage")
    refuse, taken = StepRows.refuse, []

    async def taken_over(*words: Any) -> bool:
        """The retry of ada is answered before the row is written."""
        if not taken:
            taken.append(await quant.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=job.job_id)))
        return await refuse(*words)

    monkeypatch.setattr(StepRows, "refuse", taken_over)
    users.put("cyn", disabled=True)
    async with asyncio.timeout(PATIENCE):
        while not taken:
            await asyncio.sleep(0.05)
    quant.fault.unlink()
    ended = await quant.ended(job.job_id)
    assert ended.state == SUCCEEDED
    assert ended.steps[1].start_time == taken[0].steps[1].start_time, "the step that ran was not started anew"


async def test_a_job_goes_on_if_the_users_cannot_be_asked(
    prepared: Quant, start_main: StartMain, start_standings: StartStandings
) -> None:
    await start_main(prepared.settings, "quant", run)
    users = await start_standings(prepared.settings)
    job = await hanging(prepared)
    users.go_away()
    prepared.fault.unlink()
    assert (await prepared.ended(job.job_id)).state == SUCCEEDED
