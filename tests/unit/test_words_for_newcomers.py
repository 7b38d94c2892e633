"""Places where newcomers got stuck: each message names what was given and the command that goes on."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from llamesh.cli import apply, chat, describe, models, sources, tls
from llamesh.cli.conversation import Conversation, images_of, missing_images, path_alone
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.talk import Talk
from llamesh.client.errors import FieldViolation, of_reason
from llamesh.client.profile import Profile
from llamesh.client.references import address_of, name_way_of_file
from llamesh.client.silence import Silence
from llamesh.v1 import download_pb2

Capture = pytest.CaptureFixture[str]


def test_a_second_init_says_that_the_settings_name_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in tls.SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    files = tmp_path / "server.pem", tmp_path / "server.key"
    for file in (*files, tmp_path / "other.pem", tmp_path / "elsewhere.pem"):
        file.touch()
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))
    config = tmp_path / "config.env"
    assert tls._use(tmp_path, *files) == f"{config} names it: the next `llamesh up` speaks https"
    written = config.read_bytes()
    assert tls._use(tmp_path, *files).startswith("the settings name it already")
    assert config.read_bytes() == written
    assert tls._use(tmp_path, tmp_path / "other.pem", files[1]).startswith(f"{config} names another certificate")
    monkeypatch.setenv(tls.SETTINGS[0], str(tmp_path / "elsewhere.pem"))
    assert tls._use(tmp_path, *files).startswith("the environment names another certificate")


def test_a_hint_that_ends_with_a_full_stop_goes_on() -> None:
    error = CommandError("refused", hint="name its folder in LLAMESH_IMPORT_DIRS.")
    assert "LLAMESH_IMPORT_DIRS; then run" in apply._partly(error, ["model a"], 0, None).hint


@pytest.mark.parametrize("word", ["https://ollama.com/library/llama3", "ollama.com/library/llama3:8b", "ollama:llama3"])
def test_a_page_of_ollama_is_a_source(word: str) -> None:
    with sources.fetchable(word, Profile()) as handed:
        assert handed.url == word


def test_a_name_of_ollamas_library_gets_its_address() -> None:
    with pytest.raises(CommandError) as refused, sources.fetchable("llama3:8b", Profile()):
        pass
    assert refused.value.hint == "did you mean ollama:llama3:8b?"


@pytest.mark.parametrize("again", ["", "llamesh run ./a.gguf"])
def test_an_interrupted_fetch_names_the_command_that_goes_on(
    again: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(models, "followed", MagicMock(side_effect=KeyboardInterrupt))
    mesh = MagicMock()
    mesh.models.pull.return_value = SimpleNamespace(
        model_uuid="a", silence=Silence(), ended=False, paused=False, download=download_pb2.Download()
    )
    with pytest.raises(KeyboardInterrupt):
        models.pulled(mesh, "https://models.example/a.gguf", again=again)
    assert f"`{again or 'llamesh pull --uuid a'}` waits for it again" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cat.png").write_bytes(b"png")
    (tmp_path / "notes.txt").write_text("notes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_a_path_alone_is_no_question_unless_it_is_an_image_that_is_there() -> None:
    assert [path_alone(word) for word in ("./cat.png", "./dog.png", "./notes.txt", "./none.txt", "why? ./dog.png")] == [
        *("", "./dog.png", "./notes.txt", "", ""),
    ]
    assert images_of("what is ./cat.png and ./dog.png") == [Path("cat.png")]
    assert missing_images("what is ./cat.png and ./dog.png") == ["./dog.png"]


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("./cat.png", 'llamesh chat m "..." --image ./cat.png'),
        ("./dog.png", 'llamesh chat m "..." --image ./dog.png'),
        ("./notes.txt", 'llamesh chat m "..." < ./notes.txt'),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_prompt_that_is_only_a_path_is_refused(prompt: str, hint: str) -> None:
    with pytest.raises(CommandError, match="alone is no question") as refused:
        chat.chat("m", prompt)
    assert (refused.value.hint, refused.value.code) == (hint, Exit.USAGE)


@pytest.mark.usefixtures("folder")
def test_an_image_in_a_prompt_is_said_to_be_text(capsys: Capture) -> None:
    chat._check_paths("m", "what is ./cat.png")
    assert capsys.readouterr().err == "./cat.png is sent as text; --image ./cat.png attaches it\n"


@pytest.mark.usefixtures("folder")
def test_a_conversation_takes_images_and_says_which_are_missing(capsys: Capture) -> None:
    lines = iter(["./cat.png", "./dog.png", "./notes.txt", "and ./dog.png?", "/help"])
    asked: list[object] = []

    def ask(conversation: Conversation, _: bool) -> str:
        asked.append(conversation.messages[-1]["content"])
        return "x"

    def read(_: str) -> str:
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    Talk("m", Conversation(), ask, read).go_on()
    assert [type(content) for content in asked] == [list, str]
    said = capsys.readouterr().err
    assert said.count("alone is no question") == 2
    assert "there is no file ./dog.png: it is sent as text" in said
    assert max(map(len, said.splitlines())) <= 80


def test_describe_breaks_lines_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    words = "the engine waits for memory that other engines of this machine use " * 2
    describe._say(f"Memory      {words}", 12)
    first, *others = terminal.getvalue().splitlines()
    assert f"{first} {' '.join(line.strip() for line in others)}".split() == ["Memory", *words.split()]
    assert all(len(line) <= 60 for line in (first, *others))
    assert all(line.startswith(" " * 12) for line in others)


def test_the_sdk_says_how_a_file_comes_in(tmp_path: Path) -> None:
    def refused(source: str | Path) -> tuple[str, str]:
        error = of_reason("SOURCE_REFUSED", "it lies in no folder", metadata={"rule": "folder"})
        name_way_of_file(error, source, address_of(source))
        return error.message, error.remedy

    unchanged = of_reason("SOURCE_REFUSED", "it lies in no folder")
    assert refused("https://models.example/a.gguf") == (unchanged.message, unchanged.remedy)
    path = tmp_path / "a b.gguf"
    path.touch()
    assert refused(path)[1].startswith(f"Run `llamesh pull '{path}'`, which hands a file")
    words, remedy = refused("llama3.2")
    assert (words, remedy.partition("?")[0]) == (
        "llama3.2 is neither an address nor a file of this machine",
        "Did you mean ollama:llama3.2",
    )
    assert refused(str(tmp_path / "none.gguf"))[0].startswith(
        f"there is no file {tmp_path / 'none.gguf'} on this machine"
    )


@pytest.mark.parametrize(
    ("rule", "field"), [("regular file", "source"), ("folder", "projector"), ("folder", "adapters")]
)
def test_the_sdk_leaves_a_refusal_of_another_kind_or_of_a_companion_as_it_is(
    tmp_path: Path, rule: str, field: str
) -> None:
    violation = FieldViolation(field, "it lies in no folder")
    error = of_reason("SOURCE_REFUSED", "it lies in no folder", metadata={"rule": rule}, fields=(violation,))
    before = (error.message, error.remedy)
    name_way_of_file(error, str(tmp_path / "none.gguf"), address_of(tmp_path / "none.gguf"))
    assert (error.message, error.remedy) == before
