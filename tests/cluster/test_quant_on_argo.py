"""Jobs on Argo with the real steps and a real MinIO; their manifests pass Argo's own checks.

The API server and the controller are stand-ins (tests/argo_cluster.py, tests/argo_controller.py).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.argo_cluster import ArgoCluster, argo_cluster
from tests.argo_controller import ArgoController
from tests.cluster.minio_server import MinioServer, minio
from tests.mesh.running import ROOT, RunningMesh, running_mesh
from tests.ports import free_ports
from tests.quantised_models import write_program, write_source

__all__ = ["minio"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
BUILT = ROOT / ".tools" / "bin"
ENDED = {f"QUANT_JOB_STATE_{state}" for state in ("SUCCEEDED", "PARTIAL", "FAILED", "CANCELLED")}


@pytest.fixture
async def cluster() -> AsyncIterator[ArgoCluster]:
    async with argo_cluster() as started:
        yield started


@pytest.fixture
async def mesh(cluster: ArgoCluster, minio: MinioServer, tmp_path: Path) -> AsyncIterator[RunningMesh]:
    (port,) = free_ports(1)
    own = {
        "LLAMESH_QUANT": "true",
        "LLAMESH_QUANT_PORT": str(port),
        "QUANT_ENGINE": "argo",
        "LLAMESH_ARGO_IMAGE": "llamesh:test",
        "KUBECONFIG": str(cluster.write_kubeconfig(tmp_path / "kubeconfig")),
        "LLAMA_QUANTIZE_BIN": str(write_program(tmp_path / "llama-quantize", tmp_path / "fault")),
    }
    started = running_mesh(**minio.settings, **own)
    running = await asyncio.to_thread(started.__enter__)
    try:
        running.ports["quant"] = port
        await asyncio.to_thread(running.add_model, "tiny-f16", path=write_source(tmp_path / "tiny-f16.gguf"))
        yield running
    finally:
        await asyncio.to_thread(started.__exit__, None, None, None)


async def call(mesh: RunningMesh, method: str, path: str, **arguments: Any) -> Any:
    return (await asyncio.to_thread(mesh.call, method, path, "quant", **arguments)).json()


async def ended(mesh: RunningMesh, job_id: str) -> Any:
    async with asyncio.timeout(300):
        while (job := await call(mesh, "GET", f"/jobs/{job_id}"))["state"] not in ENDED:
            await asyncio.sleep(0.5)
    return job


async def submitted(mesh: RunningMesh, cluster: ArgoCluster, *types: str) -> str:
    """A job whose workflow and ConfigMap are in the cluster."""
    before = len(cluster.config_maps)
    job = await call(mesh, "POST", "/jobs", json={"model_uuid": "tiny-f16", "types": types})
    async with asyncio.timeout(60):
        while len(cluster.config_maps) == before:
            await asyncio.sleep(0.1)
    return str(job["job_id"])


async def test_pods_bring_a_model_from_bucket_to_bucket(
    mesh: RunningMesh, cluster: ArgoCluster, minio: MinioServer, tmp_path: Path
) -> None:
    job_id = await submitted(mesh, cluster, "Q8_0", "Q4_0")
    secret = {name: minio.settings[name] for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")}
    controller = ArgoController(cluster, tmp_path / "pods", secret)
    await controller.run()
    job = await ended(mesh, job_id)
    assert job["state"] == "QUANT_JOB_STATE_SUCCEEDED", job
    assert len(controller.pods) == 7
    model = await call(mesh, "GET", "/models/tiny-Q4_0")
    assert minio.client.stat_object(model["bucket"], model["object_key"]).size == int(model["size_bytes"])
    assert 4.4 < model["report"]["bits_per_weight"] < 5
    # Nothing of the job is on the mesh's machine.
    assert not list((mesh.home / "quant").glob("job_*"))


async def test_a_type_that_is_refused_is_not_tried_again_and_stops_no_other(
    mesh: RunningMesh, cluster: ArgoCluster, minio: MinioServer, tmp_path: Path
) -> None:
    (tmp_path / "fault").write_text("refuse Q8_0")
    job_id = await submitted(mesh, cluster, "Q8_0", "Q5_0")
    secret = {name: minio.settings[name] for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")}
    controller = ArgoController(cluster, tmp_path / "pods", secret)
    await controller.run()
    job = await ended(mesh, job_id)
    assert job["state"] == "QUANT_JOB_STATE_PARTIAL"
    assert "allow_requantize" in job["error"]["message"]
    assert controller.pods.count("quantize-Q8-0") == 1


async def test_manifests_fit_the_definition_of_workflows(mesh: RunningMesh, cluster: ArgoCluster) -> None:
    await submitted(mesh, cluster, "Q8_0", "Q4_K_M")
    manifest = {key: value for key, value in cluster.workflow.items() if key != "status"}
    manifest["metadata"].pop("uid")
    jsonschema.validate(manifest, workflow_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**manifest, "spec": {**manifest["spec"], "parallelism": "two"}}, workflow_schema())


@pytest.mark.skipif(not (BUILT / "argo").exists(), reason="not built, it takes minutes: python tools/build.py argo")
async def test_manifests_pass_argos_own_command(mesh: RunningMesh, cluster: ArgoCluster, tmp_path: Path) -> None:
    await submitted(mesh, cluster, "Q8_0", "Q4_K_M")
    manifest = {key: value for key, value in cluster.workflow.items() if key != "status"}
    manifest["metadata"].pop("uid")
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(manifest), encoding="utf-8")
    command = [str(BUILT / "argo"), "lint", "--offline", str(file)]
    lint = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, env={"HOME": str(tmp_path), "PATH": ""}
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


def workflow_schema() -> Any:
    """The schema of the CRD of workflows, in which unknown fields are errors, as in a strict request."""
    definition = yaml.load((BUILT / "argo-workflows.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    (version,) = definition["spec"]["versions"]
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    """The schema without fields that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    # Of Kubernetes: an integer or a text.
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
    if isinstance(found.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in found:
        found.setdefault("additionalProperties", False)
        if found.get("properties", {}).keys() >= {"metadata", "spec"}:
            found["properties"]["metadata"] = {"type": "object"}
    return found
