"""`python -m engine.fetch` links only verified bytes, and says why it cannot. Against a stand-in of an S3 server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import fetch
from engine.failure import FailureReason
from tests.unit.fake_s3 import FakeS3, fake_s3

BYTES = b"GGUF" + bytes(range(256)) * 64
KEY = f"models/{hashlib.sha256(BYTES).hexdigest()}-{'0' * 15}1.gguf"
OK = 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    with fake_s3() as running:
        running.buckets.add("models")
        running.objects[KEY] = BYTES
        for name, value in (running.environment | {"MINIO_BUCKET": "models", "MINIO_SECURE": "false"}).items():
            monkeypatch.setenv(name, value)
        yield running


def run(folder: Path, key: str = KEY, size: int = len(BYTES)) -> int:
    link = folder / "models" / "m1" / "model.gguf"
    wanted = folder / "objects.json"
    wanted.write_text(json.dumps([{"key": key, "size_bytes": size, "path": str(link)}]))
    return fetch.main([str(wanted), str(folder / "cache")])


def link_in(folder: Path) -> Path:
    return folder / "models" / "m1" / "model.gguf"


def test_a_model_is_linked_and_fetched_once(server: FakeS3, tmp_path: Path) -> None:
    assert run(tmp_path) == OK
    assert link_in(tmp_path).read_bytes() == BYTES
    read = len(server.requests)
    assert run(tmp_path) == OK
    assert not [call for call in server.requests[read:] if call[0] == "GET" and KEY in call[1]]


@pytest.mark.parametrize("damage", ["bytes", "size", "missing", "refused"])
def test_what_is_not_the_model_is_not_linked(
    server: FakeS3, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "bytes":
        server.objects[KEY] = b"X" + BYTES[1:]
    elif damage == "missing":
        del server.objects[KEY]
    elif damage == "refused":
        server.refused_keys.add(server.access_key)
    assert run(tmp_path, size=len(BYTES) + (damage == "size")) == FailureReason.NO_MODEL.value
    assert not link_in(tmp_path).exists()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("engine: ")
    assert server.secret_key not in last.split()


def test_a_pod_without_a_store_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MINIO_ENDPOINT", raising=False)
    assert run(tmp_path) == FailureReason.BAD_SPEC.value
    assert "MINIO_ENDPOINT" in capsys.readouterr().err


@pytest.mark.parametrize("document", ["", "[1]", '[{"key": "x"}]'])
def test_a_list_that_cannot_be_read_is_refused(
    tmp_path: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "objects.json"
    file.write_text(document)
    assert fetch.main([str(file), str(tmp_path)]) == FailureReason.BAD_SPEC.value
    assert "cannot read the list of objects" in capsys.readouterr().err
