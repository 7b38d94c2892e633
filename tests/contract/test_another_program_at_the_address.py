"""A program that is no llamesh answers at the address of the mesh: every command says so, and shows nothing of its pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run

Capture = pytest.CaptureFixture[str]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Write no log."""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of Python's own web server, which is also the selected mesh."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name, value in (("URL", url), ("INFERENCE_URL", url), ("TOKEN", "a-token"), ("HOME", str(tmp_path))):
            monkeypatch.setenv(f"LLAMESH_{name}", value)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        yield url
        server.shutdown()


@pytest.mark.parametrize("command", ["status", "models", "describe x", "rm x"])
def test_a_command_says_that_something_else_answers(stranger: str, command: str, capsys: Capture) -> None:
    assert run(command.split()) == Exit.UNAVAILABLE
    said = capsys.readouterr().err
    assert said.startswith(f"error: something else than llamesh answers at {stranger}\n")
    assert "LLAMESH_URL" in said
    assert "HTTP/2" not in said
    assert "llamesh up" not in said


@pytest.mark.parametrize("command", ["chat x hello", "api POST /models"])
def test_a_page_of_another_program_is_not_shown(stranger: str, command: str, capsys: Capture) -> None:
    assert run(command.split()) != Exit.OK
    said = capsys.readouterr().err
    assert said.startswith("error: HTTP 501: something else than llamesh answers there\n")
    assert "<" not in said


def test_doctor_blames_no_firewall(stranger: str, capsys: Capture) -> None:
    assert run(["doctor"]) == Exit.FAILED
    said = capsys.readouterr().out
    assert f"something else than llamesh answers at {stranger}" in said
    assert "firewall" not in said
