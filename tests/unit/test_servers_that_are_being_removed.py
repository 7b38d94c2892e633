"""A command that looks for a server finds none that is being removed: it would be gone a moment later."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from llamesh.cli import context_sizes, run, serve
from llamesh.cli.manifest import holdings
from llamesh.cli.mesh import demo
from llamesh.server_conditions import BEING_REMOVED
from llamesh.v1 import model_pb2, server_pb2


def server(uuid: str, reason: str, ctx_size: int = 512) -> server_pb2.Server:
    made = server_pb2.Server(server_uuid=uuid, model_uuid="tiny", model_name="tiny")
    made.spec.parameters.ctx_size = ctx_size
    made.conditions.add(type="Ready", reason=reason)
    return made


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A mesh with one server, which is being removed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    fake = MagicMock()
    fake.models.list.return_value = [model_pb2.Model(model_uuid="tiny", name="tiny")]
    fake.models.get.return_value = model_pb2.Model()
    fake.servers.list.return_value = [server("going", BEING_REMOVED)]
    fake.servers.serve.return_value = server("new", "Starting")
    fake.servers.wait_ready.side_effect = lambda server, **_: server
    return fake


def test_run_declares_another(mesh: MagicMock) -> None:
    assert run._server(mesh, "tiny", ctx_size=None, idle_sleep=600.0).server_uuid == "new"


def test_the_demo_declares_another(mesh: MagicMock) -> None:
    assert demo._server(mesh, "tiny", "tiny").server_uuid == "new"


def test_apply_declares_another(mesh: MagicMock) -> None:
    assert holdings.read(mesh, {"ModelServe"}).servers == []


def test_serve_does_not_offer_it_as_an_equal(mesh: MagicMock, capsys: pytest.CaptureFixture[str]) -> None:
    serve.warn_of_others(server("new", "Starting"), mesh.servers.list())
    assert capsys.readouterr().err == ""


def test_its_context_does_not_count(mesh: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.servers.list.return_value.append(server("new", "", ctx_size=4096))
    monkeypatch.setattr(context_sizes, "connected", lambda: mesh)
    mesh.__enter__.return_value = mesh
    assert context_sizes.slot_context("tiny") == 1024


def test_one_that_falls_asleep_is_found(mesh: MagicMock) -> None:
    mesh.servers.list.return_value = [server("s1", "Sleeping")]
    assert run._server(mesh, "tiny", ctx_size=None, idle_sleep=600.0).server_uuid == "s1"
    mesh.servers.serve.assert_not_called()
