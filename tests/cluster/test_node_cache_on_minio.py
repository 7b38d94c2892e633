"""The cache of this machine with real engines and a real MinIO: what runs stays, what nothing uses makes room and comes back."""

from __future__ import annotations

import os
from pathlib import Path

from engine import sentence
from llamesh.file_holds import RemovalLock
from tests.cluster.minio_server import MinioServer, minio
from tests.mesh.running import RunningMesh, running_mesh, until

__all__ = ["minio"]

HOUR = 3600.0


def copy_of(mesh: RunningMesh, sha256: str) -> Path:
    return mesh.home / "cache" / "models" / f"{sha256}.gguf"


def age(path: Path) -> None:
    """Let the last use of a copy be an hour ago."""
    about = path.stat()
    os.utime(path, (about.st_atime - HOUR, about.st_mtime))


def held(path: Path) -> bool:
    claim = RemovalLock.of(path)
    if claim is not None:
        claim.end()
    return claim is None


def answers(mesh: RunningMesh, name: str) -> bool:
    body = {"model": f"{name}.gguf", "messages": [{"role": "user", "content": "Hi"}]}
    answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body)
    return answer.status_code == 200


def serve(mesh: RunningMesh, name: str) -> str:
    return str(mesh.serve(name, model_name=f"{name}.gguf")["server_uuid"])


def test_a_running_model_stays_and_an_unused_one_makes_room(minio: MinioServer, tmp_path: Path) -> None:
    paths = {
        name: sentence.write(tmp_path / f"{name}.gguf", size=sentence.Size(blocks=blocks))
        for blocks, name in enumerate(("runs", "slept", "third"), 1)
    }
    room = sum(path.stat().st_size for path in paths.values()) - 1
    with running_mesh(**minio.settings, LLAMESH_CACHE_BYTES=str(room)) as mesh:
        runs, slept, third = (str(mesh.add_model(name, f"{name}.gguf", path)["sha256"]) for name, path in paths.items())
        serve(mesh, "runs")
        sleeper = serve(mesh, "slept")
        assert mesh.call("POST", f"/servers/{sleeper}:sleep").status_code == 200
        mesh.until_state(sleeper, "SERVER_STATE_SLEEPING")
        until(lambda: not held(copy_of(mesh, slept)), 30, "the end of the engine that slept")
        for sha256 in (runs, slept):
            age(copy_of(mesh, sha256))

        other = serve(mesh, "third")
        assert copy_of(mesh, runs).exists()
        assert not copy_of(mesh, slept).exists()
        assert answers(mesh, "runs")
        assert answers(mesh, "third")

        # The model that made room is fetched again once a request wakes its server.
        assert mesh.call("DELETE", f"/servers/{other}").status_code == 200
        until(lambda: not held(copy_of(mesh, third)), 30, "the end of the third engine")
        age(copy_of(mesh, third))
        assert answers(mesh, "slept")
        until(lambda: not copy_of(mesh, third).exists(), 10, "the third model to make room")
