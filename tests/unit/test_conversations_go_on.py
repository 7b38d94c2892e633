"""Nothing that a person types, and no answer that fails, ends a conversation."""

from __future__ import annotations

import json
import math
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from llamesh.cli import chat
from llamesh.cli.conversation import Conversation, encoded
from llamesh.cli.failure import CommandError
from llamesh.cli.talk import Ask, Talk

LONG = "x" * 300


def echo(talk: Conversation, verbose: bool) -> str:
    return f"heard {len(talk.messages)}"


def talk(lines: Iterable[str], ask: Ask = echo) -> Conversation:
    """The conversation after these lines and the end of the input."""
    typed = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    conversation = Conversation()
    Talk("smol", conversation, ask, read).go_on()
    return conversation


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/load ~no-such-user/x.json", "error: FILE: the home directory ~no-such-user is not known"),
        ("/save ~no-such-user/x.json", "error: FILE: the home directory ~no-such-user is not known"),
        ("/save a\0b", "embedded null"),
        ("/load a\0b", "holds no saved conversation"),
        (f"/save {LONG}", "File name too long"),
        (f"/load {LONG}", "File name too long"),
        ("/load deep.json", "deep.json holds no saved conversation"),
        ("/save .", ".: Is a directory"),
        ("/save /", "/: Is a directory"),
        ("/save ..", "..: Is a directory"),
        ("/set temperature nan", "temperature is a number, not 'nan'"),
        ("/set top_p -inf", "top_p is a number, not '-inf'"),
        ("/set temperature 1e999", "temperature is a number, not '1e999'"),
        (f"/set seed {'9' * 400}", "seed is a whole number"),
    ],
)
def test_a_command_that_fails_names_the_cause(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep.json").write_text('{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert len(talk([line, "Hi"]).messages) == 2
    assert words in capsys.readouterr().err


def test_set_alone_shows_what_can_be_set_and_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    talk(["/set temperature 0.5", "/set", "/set parameter", "/set seed"])
    shown = capsys.readouterr().err
    assert shown.count("  temperature        0.5\n") == 2
    assert shown.count("  max_tokens         the server's default\n") == 2
    assert shown.count("  verbose            off\n") == 2
    assert "seed  the server's default" in shown


def test_set_takes_the_words_of_ollama(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "/set parameter temperature 0.5",
        "/set parameter num_predict 9",
        '/set system "Be short."',
        "/set verbose",
        "/set quiet",
    ]
    talked = talk(lines)
    assert talked.settings == {"temperature": 0.5, "max_tokens": 9}
    assert talked.system == "Be short."
    assert "error" not in capsys.readouterr().err
    talk(["/set parameter num_ctx 8192", "/set parameter temprature 1"])
    shown = capsys.readouterr().err
    assert "hint: llamesh set smol --ctx-size 8192" in shown
    assert "did you mean temperature?" in shown


def test_a_word_that_looks_like_an_image_but_cannot_be_a_path_is_a_word() -> None:
    questions = [f"look at /{LONG}.png", "look at /a\0b.png", "Hi"]
    assert [item["content"] for item in talk(questions).messages[::2]] == questions


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_option_that_json_lacks_is_refused(value: float) -> None:
    with pytest.raises(CommandError, match="temperature is a number"):
        chat.chat("m", "Hi", temperature=value)
    with pytest.raises(ValueError, match="JSON compliant"):
        encoded({"temperature": value})


def test_an_unexpected_error_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def ask(conversation: Conversation, verbose: bool) -> str:
        if len(conversation.messages) == 1:
            raise RecursionError("too deep")
        return "never"

    assert talk(["one", "two"], ask).messages == []
    assert capsys.readouterr().err.count("error: RecursionError: too deep") == 2


def test_save_replaces_no_file_of_another_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes, other = tmp_path / "notes.md", tmp_path / "other.json"
    notes.write_text("important")
    talk(["one", f"/save {other}"])
    kept = other.read_bytes()
    talk(["two", f"/save {notes}", f"/save {other}"])
    assert (notes.read_text(), other.read_bytes()) == ("important", kept)
    said = capsys.readouterr().err
    assert f"error: {notes} exists already" in said
    assert f"hint: /save! {notes} replaces it" in said
    talk(["two", f"/save! {notes}"])
    assert len(json.loads(notes.read_text())["messages"]) == 2


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "link that leads nowhere", "link to a device"])
@pytest.mark.parametrize("command", ["/save", "/save!"])
def test_save_replaces_regular_files_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, command: str
) -> None:
    path, other = tmp_path / "here", tmp_path / "other.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "link":
        other.write_text("kept")
        path.symlink_to(other)
    else:
        path.symlink_to("/dev/null" if kind == "link to a device" else other)
    before = path.lstat()
    talk(["one", f"{command} {path}"])
    after = path.lstat()
    assert (after.st_ino, stat.S_IFMT(after.st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))
    assert [item.name for item in tmp_path.iterdir() if item not in (path, other)] == []
    said = capsys.readouterr().err
    assert "saved" not in said
    if command == "/save!" or kind == "link that leads nowhere":
        words = "is a link, which a new file would replace" if "link" in kind else f"is no regular file but a {kind}"
        assert f"error: {path} {words}" in said
    if command == "/save!" and kind == "link":
        assert f"hint: name the file itself: {other}\n" in said
        assert other.read_text() == "kept"


def test_save_replaces_the_file_of_its_own_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, copy = tmp_path / "x.json", tmp_path / "copy.json"
    talk(["one", f"/save {file}", "two", f"/save {file}"])
    talk([f"/load {file}", "three", f"/save {file}", f"/save {copy}", f"/save {file}"])
    assert "error" not in capsys.readouterr().err
    assert len(json.loads(file.read_text())["messages"]) == 6


def test_load_of_a_file_that_is_not_there_names_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    talk(["/load nowhere.json"])
    hint = f"hint: relative paths begin in {tmp_path}; /save FILE writes a conversation"
    assert capsys.readouterr().err == f"error: nowhere.json: No such file or directory\n{hint}\n"


def test_bytes_that_are_not_text_are_saved_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    talk(["caf\udce9", f"/save {file}"])
    assert json.loads(file.read_text("utf-8"))["messages"][0]["content"] == "caf\ufffd"


def test_bytes_that_are_not_text_are_kept_in_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamesh.cli import talk as module

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    module._keep(["caf\udce9"])
    assert module._history() == ["caf\ufffd"]


@pytest.mark.parametrize("target", ["kept.json", "/dev/null"])
def test_a_link_in_the_place_of_the_history_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    from llamesh.cli import talk as module

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    link = module.history_file()
    link.parent.mkdir()
    link.symlink_to(target)
    module._keep(["one"])
    assert link.is_symlink()
    assert module._history() == ([] if target == "/dev/null" else ["one"])
