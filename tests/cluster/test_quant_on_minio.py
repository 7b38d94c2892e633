"""The flow of the reference deployment on a real MinIO: Quant's bucket llm-models, the mesh's bucket inference-models, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.minio_server import BUCKET, MinioServer, minio
from tests.mesh.running import RunningMesh, running_mesh, until
from tests.ports import free_ports
from tests.quantised_models import write_program, write_source

__all__ = ["minio"]

pytestmark = pytest.mark.timeout(600)
QUANT_BUCKET = "llm-models"
ENDED = {f"QUANT_JOB_STATE_{state}" for state in ("SUCCEEDED", "PARTIAL", "FAILED", "CANCELLED")}


@pytest.fixture(scope="module")
def mesh(minio: MinioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("quantiser")
    program = write_program(folder / "llama-quantize", folder / "fault")
    (port,) = free_ports(1)
    own = {"LLAMESH_QUANT": "true", "LLAMESH_QUANT_PORT": str(port), "LLAMA_QUANTIZE_BIN": str(program)}
    with running_mesh(**minio.settings, **own) as running:
        running.ports["quant"] = port
        running.add_model("tiny-f16", path=write_source(folder / "tiny-f16.gguf"))
        yield running


def made(mesh: RunningMesh, *types: str) -> dict[str, Any]:
    """A job that makes types, once it has ended."""
    job = mesh.call("POST", "/jobs", "quant", json={"model_uuid": "tiny-f16", "types": types}).json()

    def there() -> dict[str, Any] | None:
        found: dict[str, Any] = mesh.call("GET", f"/jobs/{job['job_id']}", "quant").json()
        return found if found["state"] in ENDED else None

    return until(there, 300, "the end of the job") or {}


def keys(minio: MinioServer, bucket: str) -> list[str]:
    return [str(item.object_name) for item in minio.client.list_objects(bucket, recursive=True)]


def test_a_variant_goes_from_bucket_to_bucket(mesh: RunningMesh, minio: MinioServer) -> None:
    job = made(mesh, "Q8_0", "Q4_0")
    assert job["state"] == "QUANT_JOB_STATE_SUCCEEDED", job
    model = mesh.call("GET", "/models/tiny-Q8_0", "quant").json()
    # Two variants, each with its description.
    assert len(keys(minio, QUANT_BUCKET)) == 4
    beside = minio.client.get_object(QUANT_BUCKET, model["object_key"].replace(".gguf", ".json")).read()
    assert json.loads(beside)["report"] == {name: value for name, value in model["report"].items() if value}
    data = minio.client.get_object(QUANT_BUCKET, model["object_key"]).read()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (int(model["size_bytes"]), model["sha256"])
    assert not (mesh.home / QUANT_BUCKET).exists()

    before = len(keys(minio, BUCKET))
    assert mesh.call("POST", "/download/tiny-Q8_0", "download").status_code == 200

    def fetched() -> dict[str, Any] | None:
        found: dict[str, Any] = mesh.call("GET", "/status/tiny-Q8_0", "download").json()
        return found if found["state"] in ("DOWNLOAD_STATE_SUCCEEDED", "DOWNLOAD_STATE_FAILED") else None

    download = until(fetched, 300, "the download") or {}
    assert (download["state"], download["sha256"]) == ("DOWNLOAD_STATE_SUCCEEDED", model["sha256"])
    assert len(keys(minio, BUCKET)) == before + 1
    mesh.call("DELETE", "/models/tiny-Q8_0", "quant")
    assert len(keys(minio, QUANT_BUCKET)) == 2
    assert "tiny-Q8_0" in mesh.call("GET", "/models").text


def test_a_job_waits_for_a_store_that_is_away(mesh: RunningMesh, minio: MinioServer) -> None:
    job = mesh.call("POST", "/jobs", "quant", json={"model_uuid": "tiny-f16", "types": ["Q5_0"]}).json()

    def step(kind: str) -> dict[str, Any]:
        steps = mesh.call("GET", f"/jobs/{job['job_id']}", "quant").json()["steps"]
        return next(step for step in steps if step["kind"] == f"QUANT_STEP_KIND_{kind}")

    until(lambda: step("QUANTIZE")["state"] == "QUANT_STEP_STATE_SUCCEEDED", 300, "the quantiser")
    minio.stop()
    try:
        until(lambda: step("PUBLISH").get("error", {}).get("reason") == "STORE_UNAVAILABLE", 300, "the refusal")
    finally:
        minio.start()

    def done() -> dict[str, Any] | None:
        found: dict[str, Any] = mesh.call("GET", f"/jobs/{job['job_id']}", "quant").json()
        return found if found["state"] in ENDED else None

    assert (until(done, 300, "the end of the job") or {})["state"] == "QUANT_JOB_STATE_SUCCEEDED"
    assert len(keys(minio, QUANT_BUCKET)) == 4
