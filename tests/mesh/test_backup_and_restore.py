"""A backup of a running mesh, restored onto an empty home, is that mesh: passwords, keys, servers and models work."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from engine import sentence
from llamesh import __version__
from llamesh.cli.mesh import archive, restoration
from llamesh.cli.mesh.archive import ArchiveError
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh, until

COMMAND = (sys.executable, "-m", "llamesh.cli.main")


def no_tables(_: Path, __: Path) -> None:
    raise AssertionError("there are no tables of PostgreSQL")


def command(mesh: RunningMesh, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=mesh.environment, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )


def test_a_restored_mesh_knows_users_keys_servers_and_models(tmp_path: Path) -> None:
    file = tmp_path / "mesh.backup"
    with running_mesh() as mesh:
        mesh.add_model("sentence")
        server = mesh.serve("sentence", model_name="sentence")
        user = mesh.call("POST", "/users", json={"username": "ada", "password": "long enough 1", "role": "ROLE_USER"})
        assert user.status_code == 200, user.text
        key = mesh.call("POST", "/keys", "contract", json={"display_name": "k", "scopes": ["infer:*"]}).json()["token"]
        token = mesh.token
        made = command(mesh, "backup", str(file), "--models")
        assert made.returncode == 0, made.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))
    restored = RunningMesh(folder / "home")
    try:
        answer = command(restored, "restore", str(file))
        assert answer.returncode == 0, answer.stderr
        restored.start()
        restored.until_state(server["server_uuid"], "SERVER_STATE_READY")
        login = restored.http.post(
            restored.url("gateway", "/auth/token"), json={"username": "ada", "password": "long enough 1"}
        )
        assert login.status_code == 200, login.text
        restored._token = token
        assert restored.call("GET", "/users").status_code == 200
        body = {"model": "sentence", "messages": [{"role": "user", "content": "Hi"}]}

        def answered() -> bool:
            asked = restored.http.post(
                restored.url("inference", "/v1/chat/completions"),
                json=body,
                headers={"authorization": f"Bearer {key}"},
            )
            return asked.status_code == 200 and sentence.SENTENCE in asked.text

        until(answered, 60, "an answer under the key of before")
        again = command(restored, "restore", str(file))
        assert (again.returncode, "not empty" in again.stderr) == (2, True)
    finally:
        restored.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "secrets").mkdir(parents=True)
    (tmp_path / "home" / "secrets" / "jwt_secret").write_text("s" * 40)
    return tmp_path / "home"


def test_a_failed_backup_leaves_the_old_one(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "b"
    archive.write(home, target, __version__, home / "config.env", models=False)
    before = target.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_add", full)
    with pytest.raises(OSError, match="No space"):
        archive.write(home, target, __version__, home / "config.env", models=False)
    assert (target.read_bytes(), sorted(path.name for path in tmp_path.iterdir())) == (before, ["b", "home"])


def test_a_backup_of_a_newer_llamesh_is_refused(home: Path, tmp_path: Path) -> None:
    archive.write(home, tmp_path / "b", "99.0.0", home / "config.env", models=False)
    with pytest.raises(ArchiveError, match="made by llamesh 99"):
        restoration.restore(tmp_path / "b", tmp_path / "new", __version__, no_tables)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../out", "/etc/out", "data/../../out", "bin/sh", "secrets/link"])
def test_an_archive_decides_about_nothing_outside_the_home(tmp_path: Path, name: str) -> None:
    evil = tmp_path / "evil"
    manifest = {"format": 1, "version": __version__, "made": "", "home": "", "models": False}
    with tarfile.open(evil, "w") as tar:
        for entry_name, content in ((archive.MANIFEST, json.dumps(manifest).encode()), (name, b"x")):
            entry = tarfile.TarInfo(entry_name)
            entry.size, entry.pax_headers = len(content), {archive.DIGEST: hashlib.sha256(content).hexdigest()}
            if entry_name == "secrets/link":
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(ArchiveError, match="which no backup of llamesh does"):
        restoration.restore(evil, tmp_path / "in" / "home", __version__, no_tables)
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no archive", os.urandom(2000)])
def test_another_file_is_told_from_a_backup(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArchiveError, match="no backup of llamesh"):
        restoration.restore(tmp_path / "x", tmp_path / "home", __version__, no_tables)
