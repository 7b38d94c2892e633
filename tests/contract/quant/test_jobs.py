"""Jobs of the Quant service, from their submission to published variants, with faults of the quantiser and of callers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc
import pytest

from llamesh.disk_space import RESERVE_BYTES, DiskSpace
from llamesh.kit.errors import MeshError, Reason
from llamesh.v1 import quant_pb2
from services.quant.jobs import Job, Jobs
from services.quant.step_rows import StepRows
from services.quant.tables import QuantStepRow
from services.quant.variants import Variants
from tests.contract.patience import PATIENCE
from tests.contract.quant.conftest import Quant, states
from tests.contract.rich_status import read_refusal


async def refused(call: object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    return read_refusal(raised.value).reason


async def rule_of(call: object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    return read_refusal(raised.value).metadata["rule"]


async def test_a_job_publishes_each_type_with_the_results_of_its_checks(quant: Quant) -> None:
    job = await quant.create("Q8_0", "Q4_0")
    job = await quant.ended(job.job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, job
    assert {state.split()[-1] for state in states(job)} == {"SUCCEEDED"}
    quantized = job.steps[1]
    assert quantized.done == quantized.total > 0
    await quant.tidy(2)
    models = await quant.models()
    assert set(models) == {"tiny-Q8_0", "tiny-Q4_0"}
    model = models["tiny-Q4_0"]
    assert (model.bucket, model.quantisation, model.source_model_uuid) == ("llm-models", "Q4_0", "tiny-f16.gguf")
    assert 4.4 < model.report.bits_per_weight < 5
    assert model.report.compared_tensors == 2
    assert model.report.measured_tokens or model.report.not_measured
    located = await quant.stub.LocateQuantModel(quant_pb2.LocateQuantModelRequest(model_uuid="tiny-Q4_0"))
    assert located.path.endswith(model.object_key)
    await quant.call("DeleteQuantModel", quant_pb2.DeleteQuantModelRequest(model_uuid="tiny-Q4_0"))
    await quant.tidy(1)


async def test_a_variant_that_is_lost_is_told_from_a_store_that_cannot_be_used(quant: Quant) -> None:
    job = await quant.create("Q8_0")
    await quant.ended(job.job_id)
    request = quant_pb2.LocateQuantModelRequest(model_uuid="tiny-Q8_0")
    path = Path((await quant.stub.LocateQuantModel(request)).path)
    path.unlink()
    assert await refused(quant.stub.LocateQuantModel(request)) == "MODEL_CORRUPT"
    path.symlink_to(path)
    assert await refused(quant.stub.LocateQuantModel(request)) == "STORE_UNAVAILABLE"


async def test_a_type_that_fails_does_not_stop_the_others_and_is_tried_again_by_retry(quant: Quant) -> None:
    quant.fault.write_text("damage Q8_0")
    job = await quant.create("Q8_0", "Q4_0")
    job = await quant.ended(job.job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_PARTIAL
    assert states(job)[1:4] == ["quantize Q8_0 SUCCEEDED", "verify Q8_0 FAILED", "publish Q8_0 SKIPPED"]
    assert job.error.reason == "VARIANT_UNSOUND"
    await quant.tidy(1)
    quant.fault.unlink()
    first = (await quant.models())["tiny-Q4_0"]
    await quant.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=job.job_id))
    job = await quant.ended(job.job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED
    assert not job.error.reason
    assert (await quant.models())["tiny-Q4_0"] == first
    await quant.tidy(2)


async def test_a_job_says_in_words_why_llama_cpp_refused(quant: Quant) -> None:
    quant.fault.write_text("refuse Q8_0")
    job = await quant.create("Q8_0")
    job = await quant.ended(job.job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_FAILED
    assert "set allow_requantize" in job.error.message
    assert "requantizing from type q4_1" in job.steps[1].log
    assert job.steps[1].tries == 1
    await quant.tidy(0)


async def test_the_quantiser_is_told_no_secret(quant: Quant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIO_SECRET_KEY", "a secret of the mesh")
    quant.fault.write_text("show environment")
    job = await quant.ended((await quant.create("Q8_0")).job_id)
    assert "LLAMA_QUANTIZE_BIN" in job.steps[1].log
    assert "a secret of the mesh" not in job.steps[1].log


async def test_a_quantiser_that_crashes_is_started_three_times(quant: Quant) -> None:
    quant.fault.write_text("abort")
    job = await quant.create("Q8_0")
    job = await quant.ended(job.job_id)
    assert (job.state, job.steps[1].tries) == (quant_pb2.QUANT_JOB_STATE_FAILED, 3)
    assert "SIGABRT" in job.error.message
    await quant.tidy(0)


async def test_a_cancelled_job_ends_at_once_and_leaves_nothing(quant: Quant) -> None:
    quant.fault.write_text("hang")
    job = await quant.create("Q8_0")
    await quant.until(job.job_id, lambda job: job.steps[1].done)
    assert await refused(quant.call("DeleteQuantJob", quant_pb2.DeleteQuantJobRequest(job_id=job.job_id))) == (
        "QUANT_JOB_NOT_ENDED"
    )
    job = await quant.call("CancelQuantJob", quant_pb2.CancelQuantJobRequest(job_id=job.job_id))
    assert job.state == quant_pb2.QUANT_JOB_STATE_CANCELLED
    await quant.tidy(0)
    again = await quant.create("Q8_0")
    quant.fault.unlink()
    assert (await quant.ended(again.job_id)).state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED
    await quant.tidy(1)
    for each in (job, again):
        await quant.call("DeleteQuantJob", quant_pb2.DeleteQuantJobRequest(job_id=each.job_id))
    assert not (await quant.call("ListQuantJobs", quant_pb2.ListQuantJobsRequest())).jobs
    await quant.tidy(1)


async def test_a_job_that_cannot_run_is_refused_when_it_is_submitted(quant: Quant) -> None:
    assert await refused(quant.create("Q4KM")) == "INVALID_FIELD"
    assert await refused(quant.create("IQ2_XXS")) == "QUANT_REFUSED"
    assert await refused(quant.create("Q8_0", model_uuid="tiny-q4")) == "QUANT_REFUSED"
    assert await refused(quant.create("Q8_0", model_uuid="nobody")) == "MODEL_NOT_FOUND"
    assert await refused(quant.create()) == "INVALID_FIELD"
    assert await refused(quant.job("nobody")) == "QUANT_JOB_NOT_FOUND"
    quant.fault.write_text("hang")
    first = await quant.create("Q8_0", request_id="one")
    assert (await quant.create("Q8_0", request_id="one")).job_id == first.job_id
    assert await refused(quant.create("Q4_0", request_id="one")) == "REQUEST_ID_REUSED"
    assert await refused(quant.create("Q4_0", "Q8_0")) == "QUANT_MODEL_EXISTS"
    assert await rule_of(quant.create("Q4_0", "Q8_0")) == "making"
    quant.fault.unlink()
    await quant.ended(first.job_id)
    assert await refused(quant.create("Q8_0")) == "QUANT_MODEL_EXISTS"
    assert await rule_of(quant.create("Q8_0")) == "exists"
    await quant.tidy(1)


async def test_an_estimate_lists_possible_and_refused_types_and_starts_nothing(quant: Quant) -> None:
    request = quant_pb2.EstimateQuantJobRequest(model_uuid="tiny-f16.gguf")
    found = await quant.call("EstimateQuantJob", request)
    sizes = [item.size_bytes for item in found.types]
    assert sizes == sorted(sizes, reverse=True)
    assert {item.type for item in found.types if item.HasField("refusal")} >= {"IQ2_XXS", "IQ1_S"}
    assert not found.HasField("refusal")
    assert 0 < found.needed_bytes < found.free_bytes
    request.types.extend(["Q8_0", "IQ1_S"])
    assert "matrix" in (await quant.call("EstimateQuantJob", request)).refusal.message
    quantised = quant_pb2.EstimateQuantJobRequest(model_uuid="tiny-q4", types=["Q8_0"])
    assert (await quant.call("EstimateQuantJob", quantised)).refusal.reason == "QUANT_REFUSED"
    quantised.options.allow_requantize = True
    assert not (await quant.call("EstimateQuantJob", quantised)).HasField("refusal")
    unknown = quant_pb2.EstimateQuantJobRequest(model_uuid="tiny-q4", types=["Q80"])
    assert await refused(quant.call("EstimateQuantJob", unknown)) == "INVALID_FIELD"
    assert not (await quant.call("ListQuantJobs", quant_pb2.ListQuantJobsRequest())).jobs


async def test_a_variant_too_far_from_its_source_is_not_published(quant: Quant) -> None:
    pytest.importorskip("cyllama", reason="without the package cyllama nothing is measured")
    job = await quant.create("Q4_0", max_kl_divergence=1e-12)
    job = await quant.ended(job.job_id)
    assert job.error.reason == "VARIANT_UNSOUND"
    assert "KL divergence" in job.error.message
    await quant.tidy(0)


async def test_a_retry_goes_on_at_the_step_that_failed(quant: Quant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.quant.step_process.MAX_OUTAGE_TRIES", 1)
    bucket = quant.settings.home / "llm-models"
    away = bucket.rename(bucket.with_name("away"))
    bucket.write_text("not a folder")
    job = await quant.ended((await quant.create("Q8_0")).job_id)
    assert states(job)[-1] == "publish Q8_0 FAILED", job
    made = job.steps[1].end_time
    assert [path.name for path in quant.folders()] == [job.job_id]
    bucket.unlink()
    away.rename(bucket)
    await quant.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=job.job_id))
    job = await quant.ended(job.job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED
    assert job.steps[1].end_time == made
    await quant.tidy(1)
    assert not quant.folders()


async def test_the_files_of_a_failed_job_go_with_its_record_or_with_the_next_job(quant: Quant) -> None:
    quant.fault.write_text("refuse Q8_0")
    first = await quant.ended((await quant.create("Q8_0")).job_id)
    second = await quant.ended((await quant.create("Q8_0")).job_id)
    assert [path.name for path in quant.folders()] == [second.job_id]
    # The folder of the first is gone: its retry starts at the source.
    quant.fault.unlink()
    await quant.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=first.job_id))
    assert (await quant.ended(first.job_id)).state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED
    await quant.call("DeleteQuantJob", quant_pb2.DeleteQuantJobRequest(job_id=second.job_id))
    await quant.tidy(1)
    assert not quant.folders()


async def test_a_folder_that_is_no_job_stays(quant: Quant) -> None:
    other = quant.settings.home / "quant" / "mine"
    other.mkdir(parents=True)
    await quant.ended((await quant.create("Q8_0")).job_id)
    async with asyncio.timeout(PATIENCE):
        while [path.name for path in quant.folders()] != ["mine"]:
            await asyncio.sleep(0.05)


async def test_a_request_is_answered_again_although_its_job_took_the_room(
    quant: Quant, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await quant.create("Q8_0", request_id="r-1")
    monkeypatch.setattr("services.quant.submission.disk_space", lambda path: DiskSpace(free=0, total=1))
    assert (await quant.create("Q8_0", request_id="r-1")).job_id == job.job_id


async def test_the_room_that_a_failed_job_keeps_is_free_for_the_next(
    quant: Quant, monkeypatch: pytest.MonkeyPatch
) -> None:
    quant.fault.write_text("refuse Q8_0")
    await quant.ended((await quant.create("Q8_0")).job_id)
    (kept,) = quant.folders()
    with (kept / "Q8_0.gguf").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 << 20)
    monkeypatch.setattr("services.quant.submission.disk_space", lambda path: DiskSpace(RESERVE_BYTES, RESERVE_BYTES))
    quant.fault.write_text("hang")
    job = await quant.create("Q4_0")
    await quant.until(job.job_id, lambda job: job.steps[1].done)
    assert not kept.exists()
    # The files of a job that runs are in use.
    assert await refused(quant.create("Q8_0")) == "QUANT_REFUSED"
    quant.fault.unlink()
    await quant.ended(job.job_id)


async def test_one_user_has_a_limited_number_of_jobs_that_have_not_ended(
    quant: Quant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.quant.job_limits.MAX_ACTIVE", 1)
    quant.fault.write_text("hang")
    first = await quant.create("Q8_0", request_id="r-1")
    assert await refused(quant.create("Q4_0")) == "TOO_MANY_JOBS"
    assert (await quant.create("Q8_0", request_id="r-1")).job_id == first.job_id
    await quant.call("CancelQuantJob", quant_pb2.CancelQuantJobRequest(job_id=first.job_id))


async def test_a_zero_byte_in_the_output_of_a_program_ends_the_job_in_words(quant: Quant) -> None:
    quant.fault.write_text("zero Q8_0")
    job = await quant.ended((await quant.create("Q8_0")).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_FAILED
    assert "a\ufffdb" in job.steps[1].log


async def test_an_object_that_cannot_be_removed_stops_no_other_job(
    quant: Quant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(variants: Variants, key: str) -> None:
        raise MeshError(Reason.ERROR_REASON_STORE_UNAVAILABLE, "denied")

    async def left(rows: StepRows) -> list[QuantStepRow]:
        return [QuantStepRow(job_id="job_0", position=0, object_key="models/x.gguf")]

    async def is_left(rows: StepRows, step: QuantStepRow) -> bool:
        return True

    monkeypatch.setattr(Variants, "remove_object", denied)
    monkeypatch.setattr(StepRows, "unrecorded", left)
    monkeypatch.setattr(StepRows, "is_unrecorded", is_left)
    job = await quant.ended((await quant.create("Q8_0")).job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED


async def test_a_run_that_fails_for_no_step_ends_the_job(quant: Quant, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("services.quant.worker.backoff", lambda failures: 0.01)
    monkeypatch.setattr(StepRows, "succeed", broken)
    job = await quant.ended((await quant.create("Q8_0")).job_id)
    assert (job.state, job.error.reason) == (quant_pb2.QUANT_JOB_STATE_FAILED, "INTERNAL")
    assert "RuntimeError" in job.error.message


async def test_a_job_frees_its_files_before_its_row_is_written_on_a_full_disk(
    quant: Quant, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail, cancel = StepRows.fail, Jobs.cancel

    def full() -> MeshError:
        return MeshError(Reason.ERROR_REASON_STORAGE_FULL, "the disk is full: nothing was written")

    async def fail_with_room(rows: StepRows, *arguments: object, **named: object) -> None:
        if quant.folders():
            raise full()
        await fail(rows, *arguments, **named)  # type: ignore[arg-type]

    async def cancel_with_room(jobs: Jobs, job_id: str) -> Job:
        if quant.folders():
            raise full()
        return await cancel(jobs, job_id)

    monkeypatch.setattr(StepRows, "fail", fail_with_room)
    monkeypatch.setattr(Jobs, "cancel", cancel_with_room)
    quant.fault.write_text("refuse Q8_0")
    assert (await quant.ended((await quant.create("Q8_0")).job_id)).state == quant_pb2.QUANT_JOB_STATE_FAILED
    quant.fault.write_text("hang")
    job = await quant.create("Q8_0")
    await quant.until(job.job_id, lambda job: states(job)[1] == "quantize Q8_0 RUNNING")
    await quant.call("CancelQuantJob", quant_pb2.CancelQuantJobRequest(job_id=job.job_id))
    assert (await quant.job(job.job_id)).state == quant_pb2.QUANT_JOB_STATE_CANCELLED


async def test_an_object_is_not_removed_once_its_job_runs_again(quant: Quant, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []

    async def remove(variants: Variants, key: str) -> None:
        removed.append(key)

    async def stale(rows: StepRows) -> list[QuantStepRow]:
        # Read before the retry; the second look finds that the job is active.
        seen.append(0)
        return [QuantStepRow(job_id="job_0", position=0, object_key="models/x.gguf")] if len(seen) % 2 else []

    seen: list[int] = []
    monkeypatch.setattr(Variants, "remove_object", remove)
    monkeypatch.setattr(StepRows, "unrecorded", stale)
    await quant.ended((await quant.create("Q8_0")).job_id)
    async with asyncio.timeout(PATIENCE):
        while len(seen) < 2:
            await asyncio.sleep(0.05)
    assert not removed
