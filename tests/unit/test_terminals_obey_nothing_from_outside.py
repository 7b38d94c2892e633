"""No control character of a mesh, a model or a file reaches the terminal of whoever runs a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from llamesh.cli import account, api, chat, completion, logs, output, printing
from llamesh.v1 import contract_pb2, model_pb2

EVIL = "x\x1b]0;owned\x07\x9b31m\r\u202ey"
Capture = pytest.CaptureFixture[str]


def decision() -> contract_pb2.Decision:
    found = contract_pb2.Decision(decision_id="d")
    refusal = found.refusals.add(reason="NAMESPACE_NOT_ALLOWED", message=EVIL, remedy=EVIL)
    refusal.metadata["namespace"] = EVIL
    return found


WAYS: dict[str, Callable[[], Any]] = {
    "note": lambda: printing.note(EVIL),
    "say": lambda: printing.say(EVIL),
    "names": lambda: output.show_list(
        [model_pb2.Model(name=EVIL)], "name", [output.Column("name", lambda item: item.name)]
    ),
    "why": lambda: account._explain(decision()),
    "a line of an engine": lambda: logs._show("", EVIL),
    "a line of a member": lambda: logs._show("gateway", json.dumps({"event": "call", "level": "info", "source": EVIL})),
    "a broken line of a member": lambda: logs._show("gateway", "{" + EVIL),
    "a body": lambda: api._show([b"\xc2", b"\x9b31m", EVIL.encode(), b"\xff\xc2"]),
    "figures": lambda: printing.note(
        chat._figures({"usage": {"total_tokens": EVIL, "completion_tokens": EVIL}, "timings": EVIL}, 0)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_text_from_outside_is_shown_without_control_characters(
    way: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    WAYS[way]()
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    assert shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_a_body_stays_as_it_is_on_a_pipe(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    api._show([b"\xc2", b"\x9b31m", b"\xff"])
    assert capfdbinary.readouterr().out == b"\xc2\x9b31m\xff"


def test_a_log_stays_as_it_is_on_a_pipe(capsys: Capture) -> None:
    logs._show("", EVIL)
    assert capsys.readouterr().out == f"{EVIL}\n"


@pytest.mark.parametrize("name", ["qwen$(touch /tmp/x)", "a;b", "a b", "`a`", EVIL, "-rf", ""])
def test_a_shell_is_offered_names_only(name: str) -> None:
    answer = {"servers": [{"model_name": name, "server_uuid": "0f0c6a0e"}]}
    assert completion._names(lambda _: answer, "servers") == ["0f0c6a0e"]
