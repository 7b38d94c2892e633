"""A word that names no model of the mesh is refused with what it names: an address, a file, a download; a source that is none likewise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.model_addresses import likely
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, refuse

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("url")


class Gateway(FakeGateway):
    """Has one model, and refuses each alias."""

    source = "hf:o/m:Q8_0"

    def ListModels(self, request: Any, context: Any) -> gateway_pb2.ListModelsResponse:
        model = model_pb2.Model(model_uuid="words", name="words.gguf", source=self.source)
        return gateway_pb2.ListModelsResponse(models=[model])

    def ChangeModelAliases(self, request: Any, context: Any) -> None:
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "add[1]: must be 1 to 128 characters")


class Downloads(FakeDownloads):
    """Has one download."""

    state = download_pb2.DOWNLOAD_STATE_FAILED

    def ListDownloads(self, request: Any, context: Any) -> download_pb2.ListDownloadsResponse:
        found = download_pb2.Download(model_uuid="p1", state=self.state, source="https://a/p1.gguf")
        found.error.message = "the disk is full"
        return download_pb2.ListDownloadsResponse(downloads=[found])


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.gguf").write_bytes(b"GGUF")
    return tmp_path


@pytest.mark.parametrize("command", ["serve", "fit", "rm"])
@pytest.mark.parametrize(
    ("word", "what"), [("./good.gguf", "a file"), ("good.gguf", "a file"), ("quant:x-Q4_0", "an address")]
)
def test_a_source_is_refused_with_the_commands_that_take_it(
    capsys: Capture, command: str, word: str, what: str
) -> None:
    assert run([command, word]) == Exit.USAGE
    said = capsys.readouterr().err
    assert f"{word} is {what}, not a model of the mesh" in said
    assert f"`llamesh run {word}`" in said
    assert f"`llamesh pull {word}`" in said


@pytest.mark.parametrize("command", ["serve", "fit", "rm"])
def test_a_path_without_a_file_is_said_to_have_none(capsys: Capture, command: str) -> None:
    assert run([command, "./nothere.gguf"]) == Exit.NOT_FOUND
    said = capsys.readouterr().err
    assert "there is no file ./nothere.gguf" in said
    assert "llamesh run" not in said


@pytest.mark.parametrize("command", ["serve", "fit", "rm"])
@pytest.mark.parametrize("word", ["./folder", "folder/", "folder"])
def test_a_folder_is_no_file(here: Path, capsys: Capture, command: str, word: str) -> None:
    (here / "folder").mkdir()
    assert run([command, word]) == Exit.USAGE
    said = capsys.readouterr().err
    assert f"{word} is a directory, not a model of the mesh\nhint: `llamesh models`" in said
    (here / "folder" / "in.gguf").write_bytes(b"GGUF")
    assert run([command, word]) == Exit.USAGE
    assert f"hint: `llamesh run {word.rstrip('/')}/in.gguf`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "fit", "rm"])
def test_a_folder_does_not_hide_the_model_that_was_meant(here: Path, capsys: Capture, command: str) -> None:
    (here / "wordz").mkdir()
    assert run([command, "wordz"]) == Exit.NOT_FOUND
    assert "did you mean words?" in capsys.readouterr().err


def test_a_file_is_not_taken_for_that_of_a_model_because_of_its_name(gateway: Gateway, capsys: Capture) -> None:
    gateway.source = "good.gguf"
    assert run(["serve", "good.gguf"]) == Exit.USAGE
    assert "It was fetched from there" not in capsys.readouterr().err


def test_the_address_of_a_model_that_the_mesh_has_names_the_model(capsys: Capture) -> None:
    assert run(["serve", "hf.co/o/m:Q8_0"]) == Exit.USAGE
    assert "did you mean words?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve", "p1"], ["run", "p1"], ["fit", "p1"], ["pull", "p1"]])
def test_the_failed_download_of_a_model_is_told(capsys: Capture, command: list[str]) -> None:
    assert run(command) == Exit.NOT_FOUND
    said = capsys.readouterr().err
    assert "the model p1 is not there: its download is FAILED\n  the disk is full" in said
    assert "llamesh downloads retry p1" in said


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("PAUSED", "llamesh downloads resume p1"),
        ("RUNNING", "llamesh pull --uuid p1"),
        ("CANCELLED", "llamesh downloads retry p1"),
    ],
)
def test_a_download_that_has_not_ended_well_names_the_command_that_goes_on(
    downloads: Downloads, capsys: Capture, state: str, remedy: str
) -> None:
    downloads.state = download_pb2.DownloadState.Value(f"DOWNLOAD_STATE_{state}")
    assert run(["pull", "p1"]) == Exit.NOT_FOUND
    assert f"hint: `{remedy}`" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["words", "words.gguf"])
def test_a_pull_of_a_model_says_that_the_mesh_has_it(capsys: Capture, word: str) -> None:
    assert run(["pull", word]) == Exit.USAGE
    said = capsys.readouterr().err
    assert f"the mesh has the model {word} already" in said
    assert f"`llamesh run {word}`" in said


def test_the_name_of_a_file_is_not_taken_for_one_of_ollama(capsys: Capture) -> None:
    assert run(["run", "nothere.gguf"]) == Exit.NOT_FOUND
    said = capsys.readouterr().err
    assert "ollama:nothere" not in said
    assert "`llamesh search nothere`" in said


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("fh:Qwen/Qwen3-GGUF", "hf:Qwen/Qwen3-GGUF"),
        ("qaunt:m", "quant:m"),
        ("llama3:8b", "ollama:llama3:8b"),
        ("s3:a/b", "s3://a/b"),
    ],
)
def test_letters_in_another_order_are_a_mistake(word: str, meant: str) -> None:
    assert likely(word) == meant


@pytest.mark.parametrize(
    ("given", "hint"), [("style=", "style=SOURCE"), ("=./a.gguf", "NAME=./a.gguf"), ("./a.gguf", "style=./a.gguf")]
)
def test_a_half_of_an_adapter_is_completed(capsys: Capture, given: str, hint: str) -> None:
    assert run(["pull", "https://a/b.gguf", f"--lora={given}"]) == Exit.USAGE
    assert f"hint: --lora {hint}\n" in capsys.readouterr().err


def test_a_refused_alias_is_named_as_it_was_given(capsys: Capture) -> None:
    assert run(["alias", "words", "fine", "a b"]) == Exit.USAGE
    assert "error: 'a b': must be 1 to 128 characters" in capsys.readouterr().err
