"""Models in a real MinIO: content under its key and nothing half-done, whatever dies in between."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from tests.cluster.minio_server import MinioServer, minio
from tests.contract.model_source import model_bytes
from tests.mesh.running import RunningMesh, running_mesh, until
from tests.processes import mesh_processes

__all__ = ["minio"]

BODY = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
BIG = 200 << 20


@pytest.fixture(scope="module")
def mesh(minio: MinioServer) -> Iterator[RunningMesh]:
    with running_mesh(**minio.settings) as running:
        running.add_model("sentence", "sentence.gguf")
        running.serve("sentence", model_name="sentence.gguf")
        yield running


def start(mesh: RunningMesh, model_uuid: str, data: bytes | None = None) -> None:
    """Begin to bring a model in, or begin again."""
    body = {}
    if data is not None:
        path = mesh.home / "import" / f"{model_uuid}.gguf"
        path.write_bytes(data)
        body = {"source": path.as_uri()}
    answer = mesh.call("POST", f"/download/{model_uuid}", "download", json=body)
    assert answer.status_code == 200, answer.text


def state(mesh: RunningMesh, model_uuid: str) -> dict[str, Any]:
    found: dict[str, Any] = mesh.call("GET", f"/status/{model_uuid}", "download").json()
    return found


def ended(mesh: RunningMesh, model_uuid: str) -> dict[str, Any]:
    """The download once it has ended, either way."""

    def there() -> dict[str, Any] | None:
        found = state(mesh, model_uuid)
        return found if found["state"] in ("DOWNLOAD_STATE_SUCCEEDED", "DOWNLOAD_STATE_FAILED") else None

    return until(there, 60, f"the end of {model_uuid}") or {}


def keys_of(minio: MinioServer, sha256: str) -> list[str]:
    """The objects with these bytes."""
    return minio.objects(f"models/{sha256}")


def says(mesh: RunningMesh) -> str:
    answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=BODY)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def test_a_model_lies_in_the_bucket_and_is_served_from_the_cache(mesh: RunningMesh, minio: MinioServer) -> None:
    download = state(mesh, "sentence")
    [key] = keys_of(minio, download["sha256"])
    stored = minio.client.get_object("inference-models", key)
    try:
        assert hashlib.sha256(stored.read()).hexdigest() == download["sha256"]
    finally:
        stored.close()
        stored.release_conn()
    assert not (mesh.home / "objects").exists()

    assert says(mesh) == SENTENCE
    copy = mesh.home / "cache" / "models" / f"{download['sha256']}.gguf"
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == download["sha256"]
    opened = [path for process in mesh_processes(mesh.home) for path in mapped(process.pid)]
    assert str(copy) in opened


def mapped(pid: int) -> set[str]:
    """Files that a process has mapped."""
    try:
        return {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    except OSError:
        return set()


def test_a_broken_file_leaves_no_object(mesh: RunningMesh, minio: MinioServer) -> None:
    before = minio.objects()
    start(mesh, "broken", model_bytes("broken", 1 << 20)[:-1])
    assert ended(mesh, "broken")["error"]["reason"] == "MODEL_INVALID"
    until(lambda: minio.objects() == before, 10, "the staged object to go")


def test_the_same_bytes_are_one_object_until_the_last_model_goes(mesh: RunningMesh, minio: MinioServer) -> None:
    data = model_bytes("shared", 1 << 20)
    digest = hashlib.sha256(data).hexdigest()
    for name in ("one", "other"):
        start(mesh, name, data)
        assert ended(mesh, name)["state"] == "DOWNLOAD_STATE_SUCCEEDED"
    assert len(keys_of(minio, digest)) == 1
    assert mesh.call("DELETE", "/models/one").status_code == 200
    assert len(keys_of(minio, digest)) == 1
    assert mesh.call("DELETE", "/models/other").status_code == 200
    until(lambda: keys_of(minio, digest) == [], 10, "the object to go")
    assert mesh.call("GET", "/models/other").status_code == 404


def test_a_killed_upload_shows_nothing_and_starts_again(mesh: RunningMesh, minio: MinioServer) -> None:
    before = minio.objects()
    data = model_bytes("big", BIG)
    digest = hashlib.sha256(data).hexdigest()
    start(mesh, "big", data)
    until(lambda: int(state(mesh, "big")["bytes_done"]) > BIG // 8, 30, "a part of the upload")
    service = mesh.processes()["download"]
    os.kill(service.pid, signal.SIGKILL)
    seen = [name for name in minio.objects() if name not in before]
    assert [name for name in seen if not name.startswith("staging/")] == []
    until(lambda: mesh.processes().get("download", service) != service and mesh.healthy(), 20, "the service")
    found = ended(mesh, "big")
    assert (found["state"], found["resume_count"]) == ("DOWNLOAD_STATE_SUCCEEDED", 1), found
    [key] = keys_of(minio, digest)
    assert sorted(minio.objects("models/")) == sorted([*(name for name in before if "models/" in name), key])
    assert mesh.call("DELETE", "/models/big").status_code == 200
    until(lambda: keys_of(minio, digest) == [], 10, "the object to go")


def test_transfers_wait_for_a_store_that_goes_away_and_go_on(mesh: RunningMesh, minio: MinioServer) -> None:
    data = model_bytes("late", 4 << 20)
    minio.stop()
    try:
        start(mesh, "late", data)
        waiting = until(
            lambda: state(mesh, "late") if "error" in state(mesh, "late") else None, 30, "the wait to be said"
        )
        assert waiting is not None
        assert (waiting["state"], waiting["error"]["reason"]) == ("DOWNLOAD_STATE_QUEUED", "STORE_UNAVAILABLE"), waiting
        assert "waits for the object store" in waiting["error"]["message"]
        assert "HTTPConnectionPool" not in waiting["error"]["message"]
        assert mesh.components()["store"] == "DEGRADED"
        # What runs goes on, and what is cached can be started anew.
        assert says(mesh) == SENTENCE
        assert mesh.call("GET", "/models/sentence").status_code == 200
        mesh.serve("sentence", model_name="again.gguf")
    finally:
        minio.start()
    assert ended(mesh, "late")["state"] == "DOWNLOAD_STATE_SUCCEEDED"
    assert len(keys_of(minio, hashlib.sha256(data).hexdigest())) == 1
    until(lambda: minio.objects("staging/") == [], 10, "nothing staged")
    until(mesh.healthy, 30, "a healthy mesh")


def test_a_store_that_goes_away_during_an_upload_costs_time_only(mesh: RunningMesh, minio: MinioServer) -> None:
    data = model_bytes("cut", BIG)
    start(mesh, "cut", data)
    until(lambda: int(state(mesh, "cut")["bytes_done"]) > BIG // 8, 30, "a part of the upload")
    minio.stop()
    try:
        until(lambda: state(mesh, "cut")["state"] == "DOWNLOAD_STATE_QUEUED", 60, "the transfer to wait")
    finally:
        minio.start()
    assert ended(mesh, "cut")["state"] == "DOWNLOAD_STATE_SUCCEEDED"
    assert mesh.call("DELETE", "/models/cut").status_code == 200


def test_a_corrupt_object_is_read_once_said_and_repaired(mesh: RunningMesh, minio: MinioServer, tmp_path: Path) -> None:
    """Its server fails in words until the model is downloaded again, then becomes ready by itself."""
    path = tmp_path / "model.gguf"
    sentence.write(path, size=sentence.Size(blocks=2))
    download = mesh.add_model("corrupt", "corrupt.gguf", path)
    [key] = keys_of(minio, download["sha256"])
    (mesh.home / "cache" / "models" / f"{download['sha256']}.gguf").unlink(missing_ok=True)
    damaged = path.read_bytes()[:-1] + b"X"
    minio.client.put_object("inference-models", key, io.BytesIO(damaged), len(damaged))
    answer = mesh.call("POST", "/serve", json={"model_uuid": "corrupt", "model_name": "corrupt.gguf", "replicas": 1})
    assert answer.status_code == 200, answer.text
    uuid = answer.json()["server_uuid"]
    until(lambda: "ModelCorrupt" in reasons(mesh.server(uuid)), 30, "the server to say what is wrong")
    assert mesh.server(uuid)["state"] == "SERVER_STATE_FAILING"
    said = state(mesh, "corrupt")
    assert (said["state"], said["error"]["reason"]) == ("DOWNLOAD_STATE_FAILED", "MODEL_CORRUPT")
    refused = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json={**BODY, "model": "corrupt.gguf"})
    assert refused.status_code == 503
    assert "Download the model again" in refused.text
    start(mesh, "corrupt")
    assert ended(mesh, "corrupt")["state"] == "DOWNLOAD_STATE_SUCCEEDED"
    mesh.until_state(uuid, "SERVER_STATE_READY", 90)
    [repaired] = keys_of(minio, download["sha256"])
    assert repaired != key


def test_a_server_whose_model_cannot_be_fetched_says_so_and_recovers(
    mesh: RunningMesh, minio: MinioServer, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    sentence.write(path)
    download = mesh.add_model("absent", "absent.gguf", path)
    # Another machine's copy, or a cache that was emptied.
    for copy in (mesh.home / "cache" / "models").glob(f"{download['sha256']}*"):
        copy.unlink()
    minio.stop()
    try:
        answer = mesh.call(
            "POST",
            "/serve",
            json={"model_uuid": "absent", "model_name": "absent.gguf", "replicas": 1, "wake_budget": "3s"},
        )
        assert answer.status_code == 200, answer.text
        uuid = answer.json()["server_uuid"]
        until(lambda: "ModelUnreachable" in reasons(mesh.server(uuid)), 30, "the server to say what it lacks")
        words = next(item["message"] for item in mesh.server(uuid)["conditions"] if item["type"] == "ModelReady")
        assert "the object store cannot be reached" in words
        assert "HTTPConnectionPool" not in words
        # A request for it is held for its budget, and its refusal says why.
        refused = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json={**BODY, "model": "absent.gguf"})
        assert (refused.status_code, "the object store cannot be reached" in refused.text) == (503, True), refused.text
    finally:
        minio.start()
    mesh.until_state(uuid, "SERVER_STATE_READY")


def reasons(server: dict[str, Any]) -> set[str]:
    return {condition["reason"] for condition in server.get("conditions", ())}


def test_a_bucket_that_is_deleted_is_made_again_and_its_models_say_so(mesh: RunningMesh, minio: MinioServer) -> None:
    data = model_bytes("lost", 1 << 20)
    start(mesh, "lost", data)
    assert ended(mesh, "lost")["state"] == "DOWNLOAD_STATE_SUCCEEDED"
    for name in minio.objects():
        minio.client.remove_object("inference-models", name)
    minio.client.remove_bucket("inference-models")
    until(lambda: minio.client.bucket_exists("inference-models"), 30, "the bucket")
    # Asked for again, the model is fetched again: its record did not know that its object was gone.
    start(mesh, "lost")
    assert ended(mesh, "lost")["state"] == "DOWNLOAD_STATE_SUCCEEDED"
    assert len(keys_of(minio, hashlib.sha256(data).hexdigest())) == 1


def test_wrong_credentials_are_said_in_the_download_in_health_and_by_doctor(minio: MinioServer) -> None:
    wrong = {**minio.settings, "MINIO_SECRET_KEY": "not-the-secret-of-this-server"}
    with running_mesh(ready_state="HEALTH_STATE_DEGRADED", **wrong) as mesh:
        (mesh.home / "import").mkdir()
        start(mesh, "sentence", model_bytes())
        found = ended(mesh, "sentence")
        assert (found["state"], found["error"]["reason"]) == ("DOWNLOAD_STATE_FAILED", "STORE_UNAVAILABLE")
        assert "refuses MINIO_ACCESS_KEY and MINIO_SECRET_KEY" in found["error"]["message"]
        until(lambda: mesh.components().get("store") == "DEGRADED", 10, "health to know")
        doctor = subprocess.run(
            [sys.executable, "-m", "llamesh.cli.main", "doctor"],
            env=mesh.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        asked, told = (line for line in doctor.stdout.splitlines() if " store " in line)
        assert "PROBLEM  object store S3 at" in asked, "doctor asks the store itself"
        assert "SignatureDoesNotMatch" in asked
        assert "refuses MINIO_ACCESS_KEY and MINIO_SECRET_KEY" in told, "so does the mesh that runs"
        everything = str(found) + doctor.stdout + (mesh.home / "logs" / "download.log").read_text()
        assert "not-the-secret" not in everything
