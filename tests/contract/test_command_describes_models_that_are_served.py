"""`llamesh describe NAME` shows the server and its model, also if both have the name, and the model if several servers have it."""

from __future__ import annotations

from typing import Any

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import model_pb2, server_pb2
from tests.contract.fakes import FakeGateway

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("url")


class Gateway(FakeGateway):
    """Has the model `words`."""

    def GetModel(self, request: Any, context: Any) -> model_pb2.Model:
        model = model_pb2.Model(model_uuid="m1", name="words", size_bytes=2**20, sha256="ab" * 32, fetched_by="ada")
        model.gguf.modalities.append(model_pb2.MODALITY_TEXT)
        model.gguf.has_chat_template = model.gguf.chat_template_has_tools = True
        model.source = "hf:o/m:Q8_0"
        return model

    def ListModels(self, request: Any, context: Any) -> Any:
        from llamesh.v1 import gateway_pb2

        return gateway_pb2.ListModelsResponse(models=[self.GetModel(request, context)])


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def serving(uuid: str) -> server_pb2.Server:
    return server_pb2.Server(server_uuid=uuid, model_uuid="m1", model_name="words")


def test_the_model_of_a_server_has_a_heading_of_its_own(gateway: Gateway, capsys: Capture) -> None:
    gateway.servers = [serving("s1")]
    assert run(["describe", "words"]) == Exit.OK
    of_server, _, of_model = capsys.readouterr().out.partition("\nModel\n")
    assert "Server      s1" in of_server
    shown = [line.split() for line in of_model.splitlines()]
    for fact in (["Model", "m1"], ["Modalities", "text"], ["Can", "do", "chat,tools"], ["SHA-256", "ab" * 32]):
        assert fact in shown
    assert ["Fetched", "by", "ada"] in shown
    assert ["Source", "hf:o/m:Q8_0"] in shown


def test_a_name_of_several_servers_shows_their_model(gateway: Gateway, capsys: Capture) -> None:
    gateway.servers = [serving("s1"), serving("s2")]
    assert run(["describe", "words"]) == Exit.OK
    shown = capsys.readouterr().out
    assert shown.count("Served by") == 2
    assert "s2  words" in shown
