"""`llamesh df` and `llamesh rm --unused`: bytes are those of distinct objects, and no model that a server needs is removed."""

from __future__ import annotations

import io
import json
from typing import Any

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2, server_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, refuse

Capture = pytest.CaptureFixture[str]
MIB = 1 << 20


class Gateway(FakeGateway):
    """Has five models: `large` is served with `draft`; `twin` has the bytes of `large`; `old` and `copy` have the same bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.models = {
            uuid: model_pb2.Model(
                model_uuid=uuid,
                name=f"{uuid}.gguf",
                size_bytes=count * MIB,
                files=[model_pb2.ModelFile(sha256=sha256, size_bytes=count * MIB)],
            )
            for uuid, sha256, count in (
                ("large", "aa", 8),
                ("twin", "aa", 8),
                ("draft", "bb", 1),
                ("old", "cc", 4),
                ("copy", "cc", 4),
            )
        }
        spec = server_pb2.ServerSpec(parameters=server_pb2.RuntimeParameters(model_draft="draft"))
        self.servers = [server_pb2.Server(server_uuid="s1", model_uuid="large", spec=spec)]
        self.newly_used = ""

    def ListModels(self, request: Any, context: Any) -> gateway_pb2.ListModelsResponse:
        return gateway_pb2.ListModelsResponse(models=self.models.values())

    def DeleteModel(self, request: Any, context: Any) -> model_pb2.Model:
        if request.model_uuid == self.newly_used:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE", "a server uses it since a moment ago")
        return self.models.pop(request.model_uuid)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_the_bytes_of_the_catalogue_are_those_of_its_objects(mesh: Gateway, capsys: Capture) -> None:
    assert run(["df", "-o", "json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out) == [
        {"models": "all", "count": 5, "objects": 3, "size_bytes": 13 * MIB},
        {"models": "used", "count": 3, "objects": 2, "size_bytes": 9 * MIB},
        {"models": "unused", "count": 2, "objects": 1, "size_bytes": 4 * MIB},
        {"models": "shared", "count": 4, "objects": 2, "size_bytes": 12 * MIB},
    ]
    assert run(["df"]) == Exit.OK
    shown = capsys.readouterr()
    assert [line.split()[:3] for line in shown.out.splitlines()[:2]] == [
        ["MODELS", "COUNT", "OBJECTS"],
        ["all", "5", "3"],
    ]
    assert "llamesh rm --unused" in shown.err


def test_the_free_space_of_the_stores_disk_is_shown_if_the_store_says_it(
    mesh: Gateway, downloads: FakeDownloads, capsys: Capture
) -> None:
    downloads.store = download_pb2.Store(
        kind=download_pb2.STORE_KIND_DIRECTORY, free_bytes=5 * MIB, total_bytes=9 * MIB
    )
    assert run(["df", "-o", "json"]) == Exit.OK
    free = {"models": "free", "count": 0, "objects": 0, "size_bytes": 5 * MIB}
    assert json.loads(capsys.readouterr().out)[-1] == free
    assert run(["df"]) == Exit.OK
    assert capsys.readouterr().out.splitlines()[-1].split() == ["free", "-", "-", "5.0", "MiB"]


def test_copies_for_engines_are_shown_if_the_models_are_in_a_bucket(
    mesh: Gateway, downloads: FakeDownloads, capsys: Capture
) -> None:
    downloads.store = download_pb2.Store(kind=download_pb2.STORE_KIND_S3, cached_bytes=5 * MIB)
    assert run(["df"]) == Exit.OK
    assert capsys.readouterr().out.splitlines()[-1].split() == ["cached", "-", "-", "5.0", "MiB"]


def test_an_empty_catalogue_has_no_bytes(mesh: Gateway, capsys: Capture) -> None:
    mesh.models = {}
    assert run(["df"]) == Exit.OK
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split() == ["all", "0", "0", "0", "B"]
    assert not shown.err


def test_unused_models_are_shown_and_removed_if_the_answer_is_yes(
    mesh: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    assert run(["rm", "--unused"]) == Exit.OK
    said = capsys.readouterr().err
    assert "Remove 3 models, at most 12.0 MiB? [y/N]" in said
    assert all(name in said for name in ("twin.gguf", "old.gguf", "copy.gguf"))
    assert len(mesh.models) == 5
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run(["rm", "--unused"]) == Exit.OK
    assert set(mesh.models) == {"large", "draft"}
    assert run(["rm", "--unused", "--yes"]) == Exit.OK
    assert "servers use all models" in capsys.readouterr().err


def test_a_model_that_gets_a_server_meanwhile_stays_and_the_others_go(mesh: Gateway, capsys: Capture) -> None:
    mesh.newly_used = "old"
    assert run(["rm", "--unused", "--yes"]) == Exit.REFUSED
    assert set(mesh.models) == {"large", "draft", "old"}
    assert "1 of 3 failed" in capsys.readouterr().err


def test_without_a_terminal_nothing_is_removed_unless_yes_is_given(
    mesh: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run(["rm", "--unused"]) == Exit.USAGE
    assert "hint: llamesh rm --unused --yes" in capsys.readouterr().err
    assert run(["rm", "twin", "--unused", "--yes"]) == Exit.USAGE
    assert len(mesh.models) == 5
