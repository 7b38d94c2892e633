"""The conversation of `llamesh chat` in a terminal, against the labelled fake of the inference address."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from llamesh.cli.conversation import Conversation, content
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.main import run
from llamesh.cli.talk import ATTACHED, COMMANDS
from tests.contract.test_chat_against_a_fake import FakeInference, inference
from tests.terminal import Terminal, terminal

__all__ = ["inference"]


@pytest.fixture
def chat(inference: FakeInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A conversation that waits for its first question."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with open_chat(tmp_path) as shown:
        shown.until("Ctrl-D ends\n>")
        inference.asked.clear()
        yield shown


def open_chat(cwd: Path, columns: int = 80) -> AbstractContextManager[Terminal]:
    return terminal(["chat", "smol"], columns, os.environ, cwd)


def refused_at_the_start(cwd: Path, code: Exit) -> list[str]:
    with open_chat(cwd) as shown:
        assert shown.end() == code
    return shown.lines


def test_a_name_that_nothing_serves_is_refused_before_the_first_question(
    inference: FakeInference, tmp_path: Path
) -> None:
    inference.served = ["smol2", "other"]
    assert refused_at_the_start(tmp_path, Exit.NOT_FOUND) == [
        "error: no server has the model smol",
        "  served: smol2, other",
        "hint: did you mean smol2?",
    ]
    inference.served = []
    assert refused_at_the_start(tmp_path, Exit.NOT_FOUND)[-1] == "hint: nothing is served yet: llamesh serve MODEL"


def test_a_token_that_is_refused_is_said_before_the_first_question(inference: FakeInference, tmp_path: Path) -> None:
    inference.refusal = 401, {"error": {"message": "this token has ended"}}
    assert refused_at_the_start(tmp_path, Exit.NOT_SIGNED_IN)[0] == "error: this token has ended"


def test_a_mesh_that_does_not_answer_is_said_before_the_first_question(
    inference: FakeInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("LLAMESH_INFERENCE_URL", address)
    assert refused_at_the_start(tmp_path, Exit.UNAVAILABLE)[0] == f"error: {address} does not answer"


def test_a_served_name_is_greeted(inference: FakeInference, tmp_path: Path) -> None:
    inference.served = ["smol"]
    with open_chat(tmp_path) as shown:
        shown.until("talking to smol; /help lists commands, Ctrl-D ends\n>")


def say(chat: Terminal, line: str, answer: str) -> list[str]:
    chat.type(f"{line}\r")
    return chat.until(f"{answer}\n>")


def test_one_talks_and_it_remembers(chat: Terminal, inference: FakeInference, tmp_path: Path) -> None:
    say(chat, "first", "You said: first")
    say(chat, "second", "You said: second")
    chat.type("\x04")
    assert chat.end() == Exit.OK
    assert [message["content"] for message in inference.asked[1][2]["messages"]] == [
        "first",
        "You said: first",
        "second",
    ]
    kept = tmp_path / "state" / "llamesh" / "chat_history.json"
    assert json.loads(kept.read_text()) == ["first", "second"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_questions_of_earlier_conversations_are_there(chat: Terminal, inference: FakeInference, tmp_path: Path) -> None:
    say(chat, "earlier", "You said: earlier")
    chat.type("/bye\r")
    assert chat.end() == Exit.OK
    with open_chat(tmp_path) as again:
        again.until("Ctrl-D ends\n>")
        again.type("\x1b[A\x1b[A")
        again.until("> earlier")


def test_ctrl_c_at_the_prompt_does_not_end_the_conversation(chat: Terminal) -> None:
    chat.type("\x03")
    chat.until("Ctrl-D or /bye ends the conversation")
    say(chat, "still here", "You said: still here")


def test_three_quotation_marks_begin_several_lines(chat: Terminal, inference: FakeInference) -> None:
    chat.type('"""one\r')
    chat.until("...")
    chat.type('two"""\r')
    chat.until("You said: one\ntwo")
    assert inference.asked[0][2]["messages"] == [{"role": "user", "content": "one\ntwo"}]


def test_settings_count_for_the_next_question(chat: Terminal, inference: FakeInference) -> None:
    chat.type("/system Be brief.\r/set temperature 0\r")
    say(chat, "Hi", "You said: Hi")
    body = inference.asked[0][2]
    assert (body["messages"][0], body["temperature"]) == ({"role": "system", "content": "Be brief."}, 0)
    chat.type("/clear\r")
    chat.until("forgotten")
    chat.type("/show\r")
    lines = chat.until("messages  0")
    assert "system    Be brief." in lines


def test_a_conversation_is_saved_and_read_again(chat: Terminal, inference: FakeInference, tmp_path: Path) -> None:
    say(chat, "remember", "You said: remember")
    chat.type("/save talk.json\r")
    chat.until("saved in talk.json")
    assert stat.S_IMODE((tmp_path / "talk.json").stat().st_mode) == 0o600
    chat.type("/clear\r/load talk.json\r")
    chat.until("2 messages")
    say(chat, "more", "You said: more")
    assert len(inference.asked[-1][2]["messages"]) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/hlep", "hint: did you mean /help?"),
        ("/set heat 1", "hint: /set shows the settings"),
        ("/set temperature hot", "error: temperature is a number"),
        ("/load nowhere.json", "nowhere.json: No such file or directory"),
        ("/help", "/save FILE"),
    ],
)
def test_commands_that_cannot_be_are_said_and_the_conversation_goes_on(chat: Terminal, line: str, words: str) -> None:
    chat.type(f"{line}\r")
    chat.until(words)
    say(chat, "Hi", "You said: Hi")


def test_help_fits_a_narrow_terminal(inference: FakeInference, tmp_path: Path) -> None:
    with open_chat(tmp_path, columns=60) as shown:
        shown.until("Ctrl-D ends\n>")
        shown.type("/help\r")
        lines = shown.until(f"{ATTACHED}\n>")
    begun = [line.split()[0] for line in lines if line.startswith("  /")]
    assert begun == [command.split()[0] for command in COMMANDS]
    assert all(line.startswith("  ") for line in lines[lines.index("> /help") + 1 : -1])


def test_a_refused_question_is_forgotten_and_the_conversation_goes_on(chat: Terminal, inference: FakeInference) -> None:
    inference.refusal = 400, {"error": {"message": "The model of this server takes no images."}}
    chat.type("what is this?\r")
    chat.until("error: The model of this server takes no images.")
    inference.refusal = None
    say(chat, "Hi", "You said: Hi")
    assert inference.asked[-1][2]["messages"] == [{"role": "user", "content": "Hi"}]


def test_no_control_character_of_a_model_reaches_the_terminal(inference: FakeInference, tmp_path: Path) -> None:
    with terminal(["chat", "smol", "a\x1b[31mred"], 80, os.environ, tmp_path) as shown:
        assert shown.end() == Exit.OK
    assert shown.lines == ["You said: a[31mred"]
    assert b"\x1b[31m" not in shown.raw


def test_ctrl_c_stops_the_answer_and_not_the_conversation(chat: Terminal, inference: FakeInference) -> None:
    inference.hung = threading.Event()
    try:
        chat.type("first\r")
        chat.until("You said:")
        chat.type("\x03")
        chat.until("stopped\n>")
    finally:
        inference.hung.set()
        inference.hung = None
    say(chat, "second", "You said: second")
    assert [message["content"] for message in inference.asked[-1][2]["messages"]] == [
        "first",
        "You said: x y",
        "second",
    ]


def test_an_answer_that_breaks_off_is_said_and_kept(chat: Terminal, inference: FakeInference) -> None:
    inference.cut = 80
    chat.type("first\r")
    chat.until("You said:\nerror: the answer broke off")
    inference.cut = None
    say(chat, "second", "You said: second")
    assert [message["content"] for message in inference.asked[-1][2]["messages"]] == ["first", "You said: ", "second"]


def test_an_image_is_sent_as_data(inference: FakeInference, tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(b"\x89PNG")
    inference.refusal = 400, {"error": {"message": "no images"}}
    assert run(["chat", "smol", "What?", "--image", str(tmp_path / "dot.png")]) == Exit.USAGE
    assert inference.asked[0][2]["messages"][0]["content"] == [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
    ]


def test_images_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    (tmp_path / "large.png").open("wb").truncate(11 * 2**20)
    for name, words in (("text.txt", "is no image"), ("large.png", "at most"), ("none.png", "No such file")):
        with pytest.raises(CommandError, match=words):
            content("What?", [tmp_path / name])


@pytest.mark.parametrize(
    "saved", ["", "[]", '{"messages": 1}', '{"messages": [{}]}', '{"messages": [], "settings": []}']
)
def test_a_file_that_holds_no_conversation_is_refused(tmp_path: Path, saved: str) -> None:
    (tmp_path / "x.json").write_text(saved)
    with pytest.raises(CommandError, match="holds no saved conversation"):
        Conversation.load(tmp_path / "x.json")


def test_bytes_that_are_no_text_stay_in_the_name_of_a_file(inference: FakeInference, tmp_path: Path) -> None:
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    with terminal(["chat", "smol"], 80, plain, tmp_path) as shown:
        shown.until("Ctrl-D ends\n>")
        inference.asked.clear()
        shown.type("café?\r")
        shown.until(">")
        shown.type("/save café.json\r/load café.json\r")
        shown.until("2 messages")
    assert inference.asked[0][2]["messages"][0]["content"] == "caf\ufffd\ufffd?"
    assert (tmp_path / "café.json").is_file()


def test_piped_text_is_put_below_the_prompt(
    inference: FakeInference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("a long text")
    with (tmp_path / "text").open() as piped:
        monkeypatch.setattr("sys.stdin", piped)
        assert run(["chat", "smol", "summarise"]) == Exit.OK
    assert inference.asked[0][2]["messages"][0]["content"] == "summarise\n\na long text"


def test_verbose_asks_for_figures_and_shows_them(inference: FakeInference, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "smol", "Hi", "--verbose"]) == Exit.OK
    assert inference.asked[0][2]["stream_options"] == {"include_usage": True}
    assert "0 tokens" in capsys.readouterr().err
