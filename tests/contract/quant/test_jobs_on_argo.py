"""Jobs as workflows of Argo: submission, every phase, cancellation and lost clusters, against a stand-in of the cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamesh.kit.errors import StartRefused
from llamesh.v1 import quant_pb2
from services.quant.service import run
from tests.argo_cluster import ArgoCluster, argo_cluster
from tests.contract.conftest import AsCaller, StartMain, StartStandings
from tests.contract.patience import PATIENCE
from tests.contract.quant.conftest import Quant, states
from tests.contract.rich_status import read_refusal

pytest.importorskip("kubernetes", reason="the client of the cluster")
pytest.importorskip("hera", reason="it makes the manifests")
FETCHED = {"code": 0, "result": {"size": 1}}
VERIFIED = {"code": 0, "result": {"sha256": "a" * 64, "size": 9, "report": {"bits_per_weight": 8.5}}}
SUCCEEDED, FAILED = quant_pb2.QUANT_JOB_STATE_SUCCEEDED, quant_pb2.QUANT_JOB_STATE_FAILED


@pytest.fixture
async def cluster() -> AsyncIterator[ArgoCluster]:
    async with argo_cluster() as started:
        yield started


@pytest.fixture
async def argo(
    prepared: Quant, cluster: ArgoCluster, start_main: StartMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Quant:
    monkeypatch.setenv("KUBECONFIG", str(cluster.write_kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.setattr("services.quant.argo.runs.POLL_SECONDS", 0.05)
    own = {
        "quant_engine": "argo",
        "argo_image": "llamesh:test",
        # Nothing listens there: the service itself leaves the bucket alone, unless a variant has to be removed.
        "minio_endpoint": "127.0.0.1:1",
        "llama_quantize_bin": "/opt/llama-quantize",
        "llama_imatrix_bin": "/opt/llama-imatrix",
    }
    prepared.settings = prepared.settings.model_copy(update=own)
    await start_main(prepared.settings, "quant", run)
    return prepared


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


async def submitted(argo: Quant, cluster: ArgoCluster, *types: str, **fields: Any) -> quant_pb2.QuantJob:
    """A job whose workflow is in the cluster."""
    job = await argo.create(*types, **fields)
    await until(lambda: len(cluster.config_maps) == len(cluster.workflows) > 0)
    return job


def succeed(cluster: ArgoCluster, of_type: str) -> None:
    """Let all tasks of a type succeed."""
    name = of_type.replace("_", "-")
    cluster.set_task(f"quantize-{name}", "Succeeded", FETCHED)
    cluster.set_task(f"verify-{name}", "Succeeded", VERIFIED)
    cluster.set_task(f"publish-{name}", "Succeeded", {"code": 0, "result": {"object_key": "k"}})


async def test_a_job_is_one_workflow_with_a_task_per_step(argo: Quant, cluster: ArgoCluster) -> None:
    job = await submitted(argo, cluster, "Q8_0", "Q4_K_M", options={"importance_matrix": True})
    assert cluster.tasks() == {
        "fetch": "",
        "imatrix": "fetch",
        **{
            task: before
            for of_type in ("Q8-0", "Q4-K-M")
            for task, before in (
                (f"quantize-{of_type}", "imatrix"),
                (f"verify-{of_type}", f"quantize-{of_type}"),
                (f"publish-{of_type}", f"verify-{of_type}"),
            )
        },
    }
    workflow = cluster.workflow
    assert workflow["metadata"]["labels"]["llamesh.io/job"] == job.job_id
    files = cluster.config_maps[workflow["metadata"]["name"]]
    assert files["metadata"]["ownerReferences"][0]["uid"] == workflow["metadata"]["uid"]
    described = json.loads(files["data"]["job.json"])
    assert [each["key"] for each in described["objects"]] == ["models/0.gguf"]
    assert "Paris" in files["data"]["calibration.txt"] or len(files["data"]["calibration.txt"]) > 1000


async def test_a_job_follows_its_tasks_to_published_models(argo: Quant, cluster: ArgoCluster) -> None:
    job = await submitted(argo, cluster, "Q8_0", "Q4_0")
    cluster.set_task("fetch", "Running", pod="Pending", message="Unschedulable: 0/3 nodes are available")
    job = await argo.until(job.job_id, lambda job: job.steps[0].log)
    assert states(job)[0] == "fetch WAITING"
    assert "0/3 nodes" in job.steps[0].log
    cluster.set_task("fetch", "Running", progress="3/10", tries=2)
    job = await argo.until(job.job_id, lambda job: job.steps[0].done == 3)
    assert (states(job)[0], job.steps[0].total, job.steps[0].tries) == ("fetch RUNNING", 10, 2)
    cluster.set_task("fetch", "Succeeded", FETCHED)
    succeed(cluster, "Q8_0")
    job = await argo.until(job.job_id, lambda job: states(job)[3] == "publish Q8_0 SUCCEEDED")
    assert job.state == quant_pb2.QUANT_JOB_STATE_RUNNING
    succeed(cluster, "Q4_0")
    cluster.set_phase("Succeeded")
    job = await argo.ended(job.job_id)
    assert job.state == SUCCEEDED
    models = await argo.models()
    assert set(models) == {"tiny-Q8_0", "tiny-Q4_0"}
    assert models["tiny-Q8_0"].sha256 == "a" * 64
    # The workflow ended by itself: nothing stops it, and the job can be deleted once it has been seen to end.
    await deleted(argo, job.job_id)
    assert "shutdown" not in cluster.workflow["spec"]


async def deleted(argo: Quant, job_id: str) -> None:
    request = quant_pb2.DeleteQuantJobRequest(job_id=job_id)
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await argo.stub.DeleteQuantJob(request, metadata=argo.caller)
            except grpc.aio.AioRpcError as error:
                if read_refusal(error).reason != "QUANT_JOB_NOT_ENDED":
                    raise
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_type_that_fails_does_not_stop_the_others_and_a_retry_makes_only_that_type(
    argo: Quant, cluster: ArgoCluster
) -> None:
    job = await submitted(argo, cluster, "Q8_0", "Q4_0")
    cluster.set_task("fetch", "Succeeded", FETCHED)
    words = {"code": 1, "reason": "VARIANT_UNSOUND", "message": "too far from its source", "log": "llama: bad"}
    cluster.set_task("quantize-Q8-0", "Succeeded", FETCHED)
    cluster.set_task("verify-Q8-0", "Failed", words)
    cluster.set_task("publish-Q8-0", "Omitted", tries=0)
    succeed(cluster, "Q4_0")
    cluster.set_phase("Failed")
    job = await argo.ended(job.job_id)
    assert job.state == quant_pb2.QUANT_JOB_STATE_PARTIAL
    assert states(job)[1:4] == ["quantize Q8_0 SUCCEEDED", "verify Q8_0 FAILED", "publish Q8_0 SKIPPED"]
    assert (job.error.reason, job.error.message, job.steps[2].log) == (
        "VARIANT_UNSOUND",
        "too far from its source",
        "llama: bad",
    )
    await argo.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=job.job_id))
    await until(lambda: len(cluster.workflows) == 2)
    assert list(cluster.tasks()) == ["fetch", "quantize-Q8-0", "verify-Q8-0", "publish-Q8-0"]


@pytest.mark.parametrize(
    ("set_up", "words"),
    [
        (lambda cluster: cluster.set_task("fetch", "Failed", message="OOMKilled (exit code 137)"), "OOMKilled"),
        (lambda cluster: cluster.set_task("fetch", "Error", message="pod deleted"), "pod deleted"),
        (lambda cluster: cluster.set_task("fetch", "Succeeded"), "workflowtaskresults"),
        (lambda cluster: cluster.set_task("fetch", "Succeeded", {"code": 0}), "workflowtaskresults"),
        (
            lambda cluster: cluster.set_phase("Failed", "workflow shutdown with strategy: Stop"),
            "shutdown with strategy",
        ),
        (lambda cluster: cluster.set_phase("Error", "invalid spec"), "invalid spec"),
        (lambda cluster: cluster.set_phase("Succeeded"), "ended as Succeeded without it"),
    ],
)
async def test_a_job_says_what_the_cluster_says_if_its_program_could_not(
    argo: Quant, cluster: ArgoCluster, set_up: Callable[[ArgoCluster], None], words: str
) -> None:
    job = await submitted(argo, cluster, "Q8_0")
    set_up(cluster)
    job = await argo.ended(job.job_id)
    assert job.state == FAILED
    assert words in job.error.message
    assert states(job)[0] == "fetch FAILED"


async def test_a_cancelled_job_stops_its_workflow_before_it_can_be_deleted(argo: Quant, cluster: ArgoCluster) -> None:
    job = await submitted(argo, cluster, "Q8_0")
    cluster.set_task("fetch", "Running")
    await argo.until(job.job_id, lambda job: states(job)[0] == "fetch RUNNING")
    await argo.call("CancelQuantJob", quant_pb2.CancelQuantJobRequest(job_id=job.job_id))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await argo.stub.DeleteQuantJob(quant_pb2.DeleteQuantJobRequest(job_id=job.job_id), metadata=argo.caller)
    assert read_refusal(raised.value).reason == "QUANT_JOB_NOT_ENDED"
    await until(lambda: cluster.workflow["spec"].get("shutdown") == "Terminate")
    cluster.set_phase("Failed", "Stopped with strategy 'Terminate'")
    await deleted(argo, job.job_id)


async def test_a_restarted_job_waits_for_the_end_of_its_earlier_workflow(argo: Quant, cluster: ArgoCluster) -> None:
    job = await submitted(argo, cluster, "Q8_0")
    cluster.set_task("fetch", "Running")
    await argo.call("CancelQuantJob", quant_pb2.CancelQuantJobRequest(job_id=job.job_id))
    await argo.call("RetryQuantJob", quant_pb2.RetryQuantJobRequest(job_id=job.job_id))
    await until(lambda: cluster.workflow["spec"].get("shutdown") == "Terminate")
    assert len(cluster.workflows) == 1
    cluster.set_phase("Failed")
    await until(lambda: len(cluster.workflows) == 2)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((503, "etcd is away"), "the cluster answers 503: etcd is away"),
        (
            (403, 'User "quant" cannot create resource "workflows"'),
            'does not let this service read workflows: User "quant"',
        ),
    ],
)
async def test_a_job_waits_for_a_cluster_that_is_away_and_says_so(
    argo: Quant, cluster: ArgoCluster, fault: tuple[int, str], words: str
) -> None:
    cluster.fault = fault
    job = await argo.create("Q8_0")
    job = await argo.until(job.job_id, lambda job: job.steps[0].log)
    assert words in job.steps[0].log
    cluster.fault = None
    await until(lambda: cluster.config_maps)
    cluster.set_task("fetch", "Succeeded", FETCHED)
    succeed(cluster, "Q8_0")
    cluster.set_phase("Succeeded")
    assert (await argo.ended(job.job_id)).state == SUCCEEDED


async def test_a_workflow_that_is_deleted_in_the_middle_is_made_again(argo: Quant, cluster: ArgoCluster) -> None:
    job = await submitted(argo, cluster, "Q8_0")
    cluster.set_task("fetch", "Succeeded", FETCHED)
    cluster.set_task("quantize-Q8-0", "Running")
    await argo.until(job.job_id, lambda job: states(job)[1] == "quantize Q8_0 RUNNING")
    cluster.config_maps.clear()
    cluster.workflows.clear()
    await until(lambda: cluster.config_maps)
    job = await argo.until(job.job_id, lambda job: states(job)[0] == "fetch WAITING")
    assert next(iter(cluster.tasks())) == "fetch"


async def test_a_model_that_was_replaced_fails_the_job(argo: Quant, cluster: ArgoCluster) -> None:
    cluster.fault = (503, "away")
    job = await argo.create("Q8_0")
    argo.catalogue.model.sha256 = "b" * 64
    cluster.fault = None
    job = await argo.ended(job.job_id)
    assert (job.state, job.error.reason) == (FAILED, "CONTENT_MISMATCH")
    assert not cluster.workflows


async def test_a_manifest_that_the_cluster_refuses_fails_the_job(argo: Quant, cluster: ArgoCluster) -> None:
    cluster.refusal = "spec.image: Invalid value"
    job = await argo.ended((await argo.create("Q8_0")).job_id)
    assert (job.state, job.steps[0].tries) == (FAILED, 1)
    assert "the cluster refuses it: spec.image: Invalid value" in job.error.message


async def test_a_workflow_that_does_not_end_with_its_job_is_stopped(
    argo: Quant, cluster: ArgoCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.quant.argo.runs.GRACE", timedelta(0))
    job = await submitted(argo, cluster, "Q8_0")
    cluster.set_task("fetch", "Failed", {"code": 1, "message": "no"})
    assert (await argo.ended(job.job_id)).state == FAILED
    await until(lambda: cluster.workflow["spec"].get("shutdown") == "Terminate")


async def test_words_of_the_cluster_that_no_row_takes_are_written_once(argo: Quant, cluster: ArgoCluster) -> None:
    job = await submitted(argo, cluster, "Q8_0")
    cluster.set_task("fetch", "Running", pod="Pending", message="a\0b" + "x" * 5000)
    job = await argo.until(job.job_id, lambda job: job.steps[0].log)
    before = job.update_time
    # Two more passes: a third message is written by the next one.
    cluster.set_task("fetch", "Running", pod="Pending", message="a\0b" + "x" * 5000)
    await asyncio.sleep(0.5)
    assert (await argo.job(job.job_id)).update_time == before


async def test_a_submitted_job_does_not_need_its_source_any_more(argo: Quant, cluster: ArgoCluster) -> None:
    job = await submitted(argo, cluster, "Q8_0")
    argo.catalogue.model.sha256 = "b" * 64
    cluster.set_task("fetch", "Succeeded", FETCHED)
    succeed(cluster, "Q8_0")
    cluster.set_phase("Succeeded")
    assert (await argo.ended(job.job_id)).state == SUCCEEDED


async def test_checkpoints_are_refused_with_what_to_do(argo: Quant) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await argo.create("Q8_0", model_uuid="", source="hf:o/r")
    refusal = read_refusal(raised.value)
    assert (refusal.reason, refusal.metadata["rule"]) == ("QUANT_REFUSED", "engine")


async def test_the_service_starts_only_with_what_pods_need(
    prepared: Quant, start_main: StartMain, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = prepared.settings.model_copy(update={"quant_engine": "argo"})
    with pytest.raises(StartRefused, match="needs MINIO_ENDPOINT and LLAMESH_ARGO_IMAGE"):
        await start_main(settings, "quant", run)


async def test_a_job_whose_user_is_disabled_stops_its_workflow_at_once(
    argo: Quant, cluster: ArgoCluster, start_standings: StartStandings, as_caller: AsCaller
) -> None:
    job = await submitted(argo, cluster, "Q8_0")
    cluster.set_task("fetch", "Running")
    await argo.until(job.job_id, lambda job: states(job)[0] == "fetch RUNNING")
    (await start_standings(argo.settings)).put("ada", disabled=True)
    argo.caller = as_caller("bob", "manage")
    job = await argo.ended(job.job_id)
    assert (job.state, job.error.reason) == (FAILED, "USER_DISABLED")
    await until(lambda: cluster.workflow["spec"].get("shutdown") == "Terminate")
