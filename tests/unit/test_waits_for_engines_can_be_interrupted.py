"""Ctrl-C while a command waits for engines ends the waiting only, and says how to go on."""

from __future__ import annotations

import sys
from unittest.mock import Mock

import pytest

from llamesh.cli.readiness import awaited
from llamesh.client.silence import Silence
from llamesh.v1 import server_pb2

SERVER = server_pb2.Server(server_uuid="3c44fe7d-6294-4375-8238-2ec086bec7fa", model_name="words")
Capture = pytest.CaptureFixture[str]


def test_ctrl_c_says_that_the_server_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    mesh = Mock(silence=Silence())
    mesh.servers.wait_ready.side_effect = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        awaited(mesh, SERVER)
    # The line of progress, and the ^C of the terminal beside it, are removed first.
    assert capsys.readouterr().err.endswith(
        "\r\x1b[Kthe server words goes on starting: `llamesh wait 3c44fe7d` waits for it, `llamesh stop 3c44fe7d` ends it\n"
    )


def test_ctrl_c_while_the_mesh_is_silent_claims_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    mesh = Mock(silence=Silence())

    def wait(*_: object, **__: object) -> None:
        mesh.silence.seconds = 7.0
        mesh.silence.told(7.0)
        raise KeyboardInterrupt

    mesh.servers.wait_ready.side_effect = wait
    with pytest.raises(KeyboardInterrupt):
        awaited(mesh, SERVER)
    said = capsys.readouterr().err
    assert "\r\x1b[Kthe mesh has not answered for 7s;" in said
    assert said.endswith(
        "it is not known whether the server words goes on starting: `llamesh wait 3c44fe7d` waits for it\n"
    )


def test_a_wait_leaves_no_line_behind(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    mesh = Mock(silence=Silence())
    mesh.servers.wait_ready.return_value = SERVER
    assert awaited(mesh, SERVER, timeout=3) is SERVER
    assert capsys.readouterr().err.endswith("\r\x1b[K")
    mesh.servers.wait_ready.assert_called_once_with(SERVER, timeout=3)
