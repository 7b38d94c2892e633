"""A job that may not go on, and whose end cannot be written, does not run and stops no other job."""

from __future__ import annotations

import pytest

from llamesh.v1 import quant_pb2
from services.quant.service import run
from services.quant.step_rows import StepRows
from tests.contract.conftest import AsCaller, StartMain, StartStandings
from tests.contract.quant.conftest import Quant

pytestmark = pytest.mark.parametrize("database_url", [None], ids=["sqlite"])


async def test_a_job_whose_end_cannot_be_written_stops_no_other(
    prepared: Quant,
    start_main: StartMain,
    start_standings: StartStandings,
    as_caller: AsCaller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: object) -> None:
        raise ValueError("a value that no row takes")

    monkeypatch.setattr(StepRows, "refuse", broken)
    await start_main(prepared.settings, "quant", run)
    users = await start_standings(prepared.settings)
    prepared.caller = as_caller("cyn", "manage")
    prepared.fault.write_text("hang")
    stuck = await prepared.create("Q8_0")
    await prepared.until(stuck.job_id, lambda job: job.steps[1].done)
    users.put("cyn", disabled=True)
    prepared.caller = as_caller("bob", "manage")
    other = await prepared.create("Q4_0")
    # Its step hangs too: it has begun, so the other one has ended.
    await prepared.until(other.job_id, lambda job: job.steps[1].done)
    assert (await prepared.job(stuck.job_id)).state == quant_pb2.QUANT_JOB_STATE_RUNNING
    assert {stuck.job_id, other.job_id} == {path.name for path in prepared.folders()}
