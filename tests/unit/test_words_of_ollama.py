"""Words that users of Ollama type: each works, or is answered with what to type here."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.cli import users
from llamesh.cli.chat_settings import SETTINGS, UNCHANGEABLE
from llamesh.cli.conversation import Conversation
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.main import run
from llamesh.cli.mesh import demo
from llamesh.cli.talk import Talk

Capture = pytest.CaptureFixture[str]
CONTEXT = ("--num-ctx", "--num_ctx")


def talk(lines: list[str], conversation: Conversation) -> None:
    said = iter([*lines, "/bye"])
    Talk("m", conversation, lambda *_: "", lambda _: next(said)).go_on()


@pytest.mark.parametrize("arguments", [["help"], ["help", "show"], ["help", "users", "create"]], ids=" ".join)
def test_help_is_a_command_too(arguments: list[str], capsys: Capture) -> None:
    assert run(arguments) == Exit.OK
    shown = capsys.readouterr().out
    assert run([*arguments[1:], "--help"]) == Exit.OK
    assert capsys.readouterr().out == shown


def test_a_short_option_shows_the_version(capsys: Capture) -> None:
    assert run(["-v"]) == Exit.OK
    assert capsys.readouterr().out.startswith("llamesh ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["create", "x", "-f", "Modelfile"], "`llamesh quantize MODEL`"),
        (["cp", "a", "b"], "`llamesh alias MODEL NAME`"),
        *(
            ([command, "x", option, "5m"], "--idle-sleep 5m")
            for command in ("run", "serve")
            for option in ("--keepalive", "--keep-alive")
        ),
        *((["run", "x", option], "/set nothink") for option in ("--think", "--hidethinking")),
        (["run", "x", "--think=false"], "/set nothink"),
        (["run", "x", "--format", "json"], "/set format json"),
        (["run", "x", "--nowordwrap"], "whole at the edge"),
        *(([command, "x", option, "4096"], "--ctx-size 8192") for command in ("run", "serve") for option in CONTEXT),
        (["run", "x", "--keep_alive=5m"], "--idle-sleep 5m"),
        *(([command, "x", "--insecure"], "only https") for command in ("run", "pull")),
        (["serve"], "`llamesh up`"),
        (["push", "x"], "`llamesh pull`"),
        (["signin"], "`llamesh login`"),
        (["launch", "claude"], "`llamesh env`"),
        *((["show", "x", option], "-o json") for option in ("-v", "--verbose")),
        *((["show", "x", f"--{name}"], "-o json") for name in ("modelfile", "parameters", "template", "license")),
        (["show", "--system", "x"], "-o json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_without_an_equal_gets_a_hint(arguments: list[str], hint: str, capsys: Capture) -> None:
    assert run(arguments) == Exit.USAGE
    said = capsys.readouterr().err
    assert hint in said.partition("hint: ")[2]
    assert "Did you mean" not in said


@pytest.mark.parametrize("arguments", [["run", "x", "--forma", "y"], ["pull", "x", "--insec"], ["models", "--verbos"]])
def test_no_distant_option_is_guessed(arguments: list[str], capsys: Capture) -> None:
    assert run(arguments) == Exit.USAGE
    assert "Did you mean" not in capsys.readouterr().err


def test_settings_become_fields_of_the_request() -> None:
    conversation = Conversation()
    lines = ["/set parameter top_k 40", "/set parameter min_p 0.1", "/set repeat_penalty 1.1", "/set format json"]
    talk([*lines, '/set parameter stop "a b" c', "/set nothink"], conversation)
    assert conversation.request() == {
        "stream": True,
        "top_k": 40,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "stop": ["a b", "c"],
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"enable_thinking": False},
        "messages": [],
    }
    talk(["/set think", "/set noformat"], conversation)
    assert conversation.request()["chat_template_kwargs"] == {"enable_thinking": True}
    assert "response_format" not in conversation.request()


def test_a_saved_conversation_has_its_settings_again(tmp_path: Path) -> None:
    conversation = Conversation()
    talk(['/set stop "a b" "c\'d"', "/set think", "/set format json", "/set top_k 3"], conversation)
    conversation.save(tmp_path / "kept.json")
    assert Conversation.load(tmp_path / "kept.json").settings == conversation.settings


def test_an_unknown_setting_is_answered_with_what_lists_all(capsys: Capture) -> None:
    talk(["/set noverbose", "/set"], Conversation())
    listed = [line.split()[0] for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    assert {*listed} == {*SETTINGS, "verbose", "system"}
    talk(["/set zzz 1"], Conversation())
    assert capsys.readouterr().err == "error: there is no setting zzz\nhint: /set shows the settings\n"


@pytest.mark.parametrize(
    ("name", "value", "back"),
    [(name, "1", "default") for name in SETTINGS if name not in {"format", "think"}]
    + [("stop", "a b", "none"), ("format", "json", "default"), ("think", "on", "default")],
)
def test_each_setting_is_given_back_to_the_server(name: str, value: str, back: str) -> None:
    conversation = Conversation()
    for line in (
        f"/set {name} {back}",
        f"/set parameter {name} {back}",
        *([f"/set no{name}"] if name != "think" else []),
    ):
        talk([f"/set {name} {value}"], conversation)
        assert name in conversation.settings
        talk([line], conversation)
        assert conversation.settings == {}, line
    talk(['/set stop "none"'], conversation)
    assert conversation.settings == {"stop": ["none"]}


@pytest.mark.parametrize(
    "line",
    [
        "repeat_penalty 0",
        "repeat_penalty -1",
        "repeat_last_n -7",
        "temperature -1",
        "top_p 1.1",
        "min_p -0.1",
        "max_tokens -2",
    ],
)
def test_a_value_with_which_each_answer_would_be_an_error_is_refused(line: str, capsys: Capture) -> None:
    conversation = Conversation()
    talk([f"/set {line}"], conversation)
    assert conversation.settings == {}
    assert f"error: {line.split()[0]} is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "figures"), [("true", True), ("on", True), ("false", False), ("off", False), ("default", False)]
)
def test_verbose_takes_the_words_of_a_switch(word: str, figures: bool) -> None:
    asked: list[bool] = []
    said = iter([f"/set verbose {word}", "hello", "/bye"])
    talking = Talk("m", Conversation(), lambda _, verbose: asked.append(verbose) or "", lambda _: next(said))
    talking.go_on()
    assert asked == [figures]


def test_a_wrong_word_for_verbose_is_named(capsys: Capture) -> None:
    talk(["/set verbose loud"], Conversation())
    assert "error: verbose is on or off, not 'loud'\n" in capsys.readouterr().err


def test_a_quoted_file_is_named_without_the_quotation_marks(tmp_path: Path) -> None:
    talk([f'/save "{tmp_path}/my talk.json"', f"/load '{tmp_path}/my talk.json'"], Conversation())
    assert [path.name for path in tmp_path.iterdir()] == ["my talk.json"]


@pytest.mark.parametrize("name", UNCHANGEABLE)
def test_what_cannot_be_set_is_said_in_one_line(name: str, capsys: Capture) -> None:
    talk([f"/set {name}"], Conversation())
    assert capsys.readouterr().err == f"{UNCHANGEABLE[name]}\n"
    talk([f"/set no{name}"], Conversation())
    assert capsys.readouterr().err == f"error: there is no no{name}: {UNCHANGEABLE[name]}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [("/set format yaml", "format is json, not 'yaml'"), ("/set think hard", "think is on or off, not 'hard'")],
)
def test_a_wrong_value_is_named(line: str, said: str, capsys: Capture) -> None:
    talk([line], Conversation())
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("detached", "ends"), [(False, "Ctrl-C, or"), (True, "")])
def test_a_detached_mesh_is_not_stopped_by_an_interrupt(detached: bool, ends: str) -> None:
    shown = demo._what_next(demo.Place(Path(), "http://m", "http://i", detached), "model", "login")
    assert ("Ctrl-C" in shown) is bool(ends)
    assert "down" in shown


def test_a_new_password_is_typed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    typed = iter(["one", "one", "one", "other"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))
    assert users._new_password("password: ", stdin=False) == "one"
    with pytest.raises(CommandError, match="the two passwords differ"):
        users._new_password("password: ", stdin=False)
