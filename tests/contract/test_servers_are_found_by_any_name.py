"""Every command that takes a server finds it by its own names and by those of its model, like `run`."""

from __future__ import annotations

from typing import Any

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.client.aio import AsyncClient
from llamesh.client.server_names import AmbiguousServerError, NotServedError
from llamesh.client.sync import Client
from llamesh.v1 import gateway_pb2, model_pb2, server_pb2
from tests.contract.fakes import FakeGateway

Capture = pytest.CaptureFixture[str]
COMMANDS = (["stop"], ["sleep"], ["wake"], ["scale", "2"], ["set", "--idle-sleep", "10m"], ["logs"])


class Gateway(FakeGateway):
    """Has the model m1, named one.gguf and also words, and its server; the model m2 has none. Remembers which servers were acted on."""

    def __init__(self) -> None:
        super().__init__()
        self.servers = [server_pb2.Server(server_uuid="0f0c6a0e", model_name="served", model_uuid="m1", etag="7")]
        self.acted: list[str] = []

    def ListModels(self, request: Any, context: Any) -> gateway_pb2.ListModelsResponse:
        models = [
            model_pb2.Model(model_uuid="m1", name="one.gguf", aliases=["words"]),
            model_pb2.Model(model_uuid="m2", name="two.gguf", aliases=["other"]),
        ]
        return gateway_pb2.ListModelsResponse(models=models)

    def _act(self, request: Any, context: Any) -> server_pb2.Server:
        self.acted.append(request.server_uuid)
        return server_pb2.Server(server_uuid=request.server_uuid)

    Stop = SleepServer = WakeServer = ScaleServer = UpdateServer = _act

    def ReadServerLog(self, request: Any, context: Any) -> Any:
        self.acted.append(request.server_uuid)
        yield gateway_pb2.ReadServerLogResponse(lines=["a line"])


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def call(command: list[str], name: str) -> int:
    return run([command[0], name, *command[1:]])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("name", ["0f0c6a0e", "served", "0f0c", "m1", "one.gguf", "words"])
def test_a_server_is_found_by_its_names_and_those_of_its_model(mesh: Gateway, command: list[str], name: str) -> None:
    assert call(command, name) == Exit.OK
    assert mesh.acted == ["0f0c6a0e"]


@pytest.mark.parametrize("name", ["0f0c6a0e", "served", "0f0c", "m1", "one.gguf", "words"])
async def test_the_sdk_finds_the_server_that_the_command_finds(mesh: Gateway, url: str, name: str) -> None:
    with Client(url, "token") as client:
        assert client.servers.find(name) == "0f0c6a0e"
        assert client.servers.find("nothing") == "nothing"
    async with AsyncClient(url, "token") as asynchronous:
        assert await asynchronous.servers.find(name) == "0f0c6a0e"


def test_the_sdk_says_that_a_name_means_no_one_server(mesh: Gateway, url: str) -> None:
    mesh.servers.append(server_pb2.Server(server_uuid="1a2b", model_name="second", model_uuid="m1"))
    with Client(url, "token") as client:
        with pytest.raises(AmbiguousServerError, match="'words' is the name of 2") as several:
            client.servers.find("words")
        with pytest.raises(NotServedError, match="no server serves the model 'other'"):
            client.servers.find("other")
    assert several.value.ids == ("0f0c6a0e", "1a2b")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_of_a_model_with_several_servers_the_servers_are_shown(
    mesh: Gateway, command: list[str], capsys: Capture
) -> None:
    mesh.servers.append(
        server_pb2.Server(server_uuid="1a2b", model_name="second", model_uuid="m1", runtime_params="--ctx-size 512")
    )
    assert call(command, "words") == Exit.USAGE
    assert mesh.acted == []
    said = capsys.readouterr().err
    assert said.startswith("error: words names 2 servers; give the id of one\n")
    assert "1a2b  second  --ctx-size 512" in said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_of_a_model_that_is_not_served_the_way_is_named(mesh: Gateway, command: list[str], capsys: Capture) -> None:
    assert call(command, "other") == Exit.NOT_FOUND
    assert mesh.acted == []
    said = capsys.readouterr().err
    assert said.startswith("error: no server serves the model other\n")
    assert "`llamesh serve other`" in said
    assert "`llamesh run other`" in said


def test_a_word_that_is_nearly_a_name_is_refused_with_it(mesh: Gateway, capsys: Capture) -> None:
    assert run(["stop", "wrods"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: there is no server wrods\nhint: did you mean words?\n"


def test_a_server_that_is_being_removed_gives_way_to_another(mesh: Gateway) -> None:
    going = server_pb2.Server(server_uuid="1a2b", model_name="served", model_uuid="m1")
    going.conditions.add(type="Ready", reason="Stopping")
    mesh.servers.insert(0, going)
    for name in ("served", "words"):
        assert run(["stop", name]) == Exit.OK
    assert mesh.acted == ["0f0c6a0e", "0f0c6a0e"]


def test_a_described_model_names_its_servers(mesh: Gateway, capsys: Capture) -> None:
    assert run(["show", "words"]) == Exit.OK
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["Model", "m1"]
    assert shown[-1].split() == ["Served", "by", "0f0c6a0e", "served"]
