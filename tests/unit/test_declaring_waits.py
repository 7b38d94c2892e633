"""Of two commands of one user that declare on one mesh, the second waits and then sees what the first has made."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from llamesh.cli import declaring as module
from llamesh.cli import run
from llamesh.cli.declaring import declaring
from llamesh.v1 import model_pb2, server_pb2


def test_the_second_command_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, order = threading.Event(), []
    monkeypatch.setattr(module, "note", lambda _: waits.set())
    environment = {"XDG_STATE_HOME": str(tmp_path)}

    def second() -> None:
        with declaring("http://mesh", "apply", environment):
            order.append("second")

    other = threading.Thread(target=second)
    with declaring("http://mesh", "apply", environment):
        other.start()
        assert waits.wait(30)
        order.append("first")
    other.join(30)
    assert order == ["first", "second"]


def test_a_command_goes_on_without_a_place_for_the_lock(tmp_path: Path) -> None:
    (tmp_path / "llamesh").touch()
    entered = False
    with declaring("http://mesh", "apply", {"XDG_STATE_HOME": str(tmp_path)}):
        entered = True
    assert entered


def test_run_uses_the_server_that_another_run_has_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    declared = server_pb2.Server(server_uuid="s1", model_uuid="tiny", model_name="tiny")
    mesh = MagicMock()
    mesh.models.list.return_value = [model_pb2.Model(model_uuid="tiny", name="tiny")]
    mesh.servers.list.side_effect = [[], [declared]]
    assert run._server(mesh, "tiny", ctx_size=None, idle_sleep=600.0) == declared
    mesh.servers.serve.assert_not_called()
