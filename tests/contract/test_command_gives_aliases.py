"""`llamesh alias`, and every command that names a model takes its aliases."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from llamesh.cli.completion import candidates
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, refuse

Capture = pytest.CaptureFixture[str]


class Gateway(FakeGateway):
    """Has two models; `m1` is also called `words`."""

    def __init__(self) -> None:
        super().__init__()
        self.models = {
            "m1": model_pb2.Model(model_uuid="m1", name="one.gguf", aliases=["words"]),
            "m2": model_pb2.Model(model_uuid="m2", name="two.gguf"),
        }
        self.changes: list[gateway_pb2.ChangeModelAliasesRequest] = []

    def ListModels(self, request: Any, context: Any) -> gateway_pb2.ListModelsResponse:
        return gateway_pb2.ListModelsResponse(models=self.models.values())

    def GetModel(self, request: Any, context: Any) -> model_pb2.Model:
        if request.model_uuid not in self.models:
            refuse(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", f"no model {request.model_uuid}")
        return self.models[request.model_uuid]

    def DeleteModel(self, request: Any, context: Any) -> model_pb2.Model:
        return self.models.pop(request.model_uuid)

    def ChangeModelAliases(self, request: Any, context: Any) -> model_pb2.Model:
        self.changes.append(request)
        if "taken" in request.add:
            where = {"name": "taken", "modelUuid": "m2", "alias": "Taken"}
            refuse(
                context, grpc.StatusCode.ALREADY_EXISTS, "MODEL_NAME_TAKEN", "taken names the model m2 already", where
            )
        return model_pb2.Model(model_uuid=request.model_uuid, name="one.gguf", aliases=request.add)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_names_are_given_and_taken_away_by_any_name_of_the_model(mesh: Gateway, capsys: Capture) -> None:
    assert run(["alias", "words", "qwen:latest", "w"]) == Exit.OK
    assert capsys.readouterr().out.splitlines()[1].split() == ["m1", "one.gguf", "qwen:latest,w"]
    assert run(["alias", "one.gguf", "words", "--remove", "-o", "name"]) == Exit.OK
    assert capsys.readouterr().out == "m1\n"
    assert mesh.changes == [
        gateway_pb2.ChangeModelAliasesRequest(model_uuid="m1", add=["qwen:latest", "w"]),
        gateway_pb2.ChangeModelAliasesRequest(model_uuid="m1", remove=["words"]),
    ]


def test_a_name_that_is_no_alias_of_the_model_is_not_taken_away(mesh: Gateway, capsys: Capture) -> None:
    assert run(["alias", "m1", "words", "wrods", "--remove"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: m1 has no alias wrods; nothing was changed\nhint: llamesh alias m1\n"
    assert run(["alias", "two.gguf", "words", "--remove"]) == Exit.NOT_FOUND
    assert mesh.changes == []


def test_without_names_the_model_is_shown(mesh: Gateway, capsys: Capture) -> None:
    assert run(["alias", "m1", "-o", "json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["aliases"] == ["words"]
    assert mesh.changes == []


def test_a_name_that_is_taken_is_refused_with_the_remedy(mesh: Gateway, capsys: Capture) -> None:
    assert run(["alias", "m1", "taken"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "taken names the model m2 already" in said
    assert "hint: take another name; `llamesh alias m2 Taken --remove` frees it" in said


def test_an_alias_stands_for_its_model_in_every_command(mesh: Gateway, capsys: Capture) -> None:
    # The answer to the first declaration is lost, see the fake.
    assert run(["serve", "words", "--model-draft", "words"]) == Exit.OK
    assert {(item.model_uuid, item.parameters.model_draft) for item in mesh.declared} == {("m1", "m1")}
    capsys.readouterr()
    assert run(["describe", "words"]) == Exit.OK
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert (shown["Model"], shown["Name"], shown["Aliases"]) == (["m1"], ["one.gguf"], ["words"])
    assert run(["describe", "words", "-o", "name"]) == Exit.OK
    assert capsys.readouterr().out == "m1\n"
    assert run(["rm", "words"]) == Exit.OK
    assert set(mesh.models) == {"m2"}


def test_what_is_neither_a_server_nor_a_model_is_not_described(mesh: Gateway, capsys: Capture) -> None:
    assert run(["describe", "nothing"]) == Exit.NOT_FOUND
    assert "there is no server and no model nothing" in capsys.readouterr().err


def test_aliases_are_listed_and_completed(mesh: Gateway, capsys: Capture) -> None:
    assert run(["models", "-o", "wide"]) == Exit.OK
    assert "ALIASES" in capsys.readouterr().out
    listed = {"models": [{"model_uuid": "m1", "name": "one.gguf", "aliases": ["words"]}]}
    assert candidates(["serve", ""], lambda path: listed) == ["m1", "one.gguf", "words"]


@pytest.mark.parametrize("words", [["cancel"], ["pause"], ["resume", "--no-wait"], ["retry", "--no-wait"], ["rm"]])
@pytest.mark.parametrize("name", ["m1", "one.gguf", "words"])
def test_downloads_are_named_by_any_name_of_their_model(
    mesh: Gateway, downloads: FakeDownloads, capsys: Capture, words: list[str], name: str
) -> None:
    downloads.StartDownload(download_pb2.StartDownloadRequest(model_uuid="m1"), None)
    assert run(["downloads", *words, name, "-o", "name"]) == Exit.OK
    assert capsys.readouterr().out == "m1\n"
