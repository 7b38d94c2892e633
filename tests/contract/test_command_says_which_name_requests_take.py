"""`run`, `serve` and `quantize` print the name that requests put into "model", if it is not the word that the user knows."""

from __future__ import annotations

from typing import Any

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.quant_variants import use_of
from llamesh.cli.served_names import say_name
from llamesh.v1.quant_pb2 import QuantModel
from llamesh.v1.server_pb2 import Server
from tests.contract.fakes import FakeGateway

Capture = pytest.CaptureFixture[str]
NOTE = 'requests put "model": "m-Q8_0.gguf"'


def test_the_name_is_printed_unless_it_is_the_given_word(capsys: Capture) -> None:
    server = Server(server_uuid="s1", model_name="m-Q8_0.gguf")
    say_name(server, "quant:m-Q8_0")
    assert capsys.readouterr() == ("", f"{NOTE}\n")
    for word in ("m-Q8_0.gguf", "./m-Q8_0.gguf", "hf:o/r/m-Q8_0.gguf"):
        say_name(server, word)
    assert capsys.readouterr() == ("", "")


def test_a_variant_is_shown_with_the_name_of_its_model() -> None:
    assert NOTE in use_of(QuantModel(model_uuid="m-Q8_0", name="m-Q8_0.gguf"))
    assert "requests" not in use_of(QuantModel(model_uuid="m-Q8_0"))


class Gateway(FakeGateway):
    """Its servers have the name of their model."""

    def Serve(self, request: Any, context: Any) -> Server:
        return Server(server_uuid="s1", model_name="m-Q8_0.gguf")


@pytest.fixture
def gateway() -> FakeGateway:
    return Gateway()


@pytest.mark.usefixtures("url")
def test_serve_prints_the_name(capsys: Capture) -> None:
    assert run(["serve", "m0"]) == Exit.OK
    said = capsys.readouterr()
    assert said.err == f"{NOTE}\n"
    assert "requests" not in said.out
