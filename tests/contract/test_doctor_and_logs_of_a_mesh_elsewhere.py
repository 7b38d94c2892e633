"""`doctor` and `logs` for a mesh of another machine report what it answers, and nothing of this machine as if it were that mesh's."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from llamesh import __version__
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.local_files import home_for
from llamesh.cli.main import run
from llamesh.cli.mesh import elsewhere
from llamesh.client.contexts import DEFAULT, context_path
from llamesh.client.profile import Profile, load_profile, save_profile
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.ports import free_ports

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address that is none of this machine's names, at which nothing answers; a home here has logs."""
    (tmp_path / "home" / "logs").mkdir(parents=True)
    (tmp_path / "home" / "logs" / "gateway.log").write_text("a line of this machine\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    url = f"http://127.0.0.2:{free_ports(1)[0]}"
    monkeypatch.setenv("LLAMESH_URL", url)
    return url


def test_doctor_checks_only_what_a_mesh_elsewhere_answers(remote: str, tmp_path: Path, capsys: Capture) -> None:
    assert run(["doctor", "-o", "json"]) == Exit.FAILED
    found = {item["check"]: item for item in json.loads(capsys.readouterr().out)}
    assert list(found) == ["mesh", "login", "front door"]
    assert remote in found["mesh"]["found"]
    assert "does not answer" in found["front door"]["found"]
    assert "on its machine" in found["front door"]["fix"]
    assert str(tmp_path) not in str(found)


def test_doctor_says_that_this_machine_was_not_checked(remote: str, tmp_path: Path, capsys: Capture) -> None:
    assert run(["doctor"]) == Exit.FAILED
    said = capsys.readouterr().err
    assert "this machine was not checked" in said
    assert f"`LLAMESH_URL= LLAMESH_HOME={tmp_path / 'home'} llamesh doctor`" in said


def test_doctor_checks_this_machine_if_its_home_is_meant(
    remote: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("LLAMESH_URL", "")
    run(["doctor", "-o", "json"])
    assert {"python", "engine", "disk", "mesh"} <= {item["check"] for item in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("arguments", [[], ["gateway"], ["envoy", "-f"]])
def test_logs_of_components_of_a_mesh_elsewhere_are_refused(remote: str, arguments: list[str], capsys: Capture) -> None:
    assert run(["logs", *arguments]) == Exit.USAGE
    shown = capsys.readouterr()
    assert "a line of this machine" not in shown.out
    assert remote in shown.err
    assert "on its machine" in shown.err


def test_logs_of_this_machine_are_shown_after_the_end_of_its_mesh(
    remote: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("LLAMESH_URL", "")
    assert run(["logs", "gateway"]) == Exit.OK
    assert capsys.readouterr().out == "a line of this machine\n"


@pytest.fixture
def published(remote: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A loopback address of a mesh that is not of this home, as of a container or of `ssh -L`; a program listens there."""
    monkeypatch.delenv("LLAMESH_HOME")
    monkeypatch.setenv("HOME", os.environ["XDG_CONFIG_HOME"])
    shutil.move(f"{os.environ['HOME']}/home", f"{os.environ['HOME']}/.llamesh")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.delenv("LLAMESH_URL")
        save_profile(Profile(url, "token"))
        yield url


def test_logs_of_a_mesh_at_a_loopback_address_are_not_those_of_this_home(published: str, capsys: Capture) -> None:
    assert run(["logs", "gateway"]) == Exit.USAGE
    shown = capsys.readouterr()
    assert "a line of this machine" not in shown.out
    assert published in shown.err


def test_doctor_asks_a_mesh_at_a_loopback_address(
    published: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(elsewhere, "SECONDS", 0.1)
    assert run(["doctor", "-o", "json"]) == Exit.FAILED
    found = {item["check"]: item for item in json.loads(capsys.readouterr().out)}
    assert list(found) == ["mesh", "login", "front door"]
    assert published in found["mesh"]["found"]


@pytest.mark.parametrize("login", ["of this home", "none"])
def test_whoever_listens_at_the_port_of_an_ended_mesh_is_not_another_mesh(
    published: str, login: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    port = urlsplit(published).port
    monkeypatch.setenv("LLAMESH_GATEWAY_PORT", str(port))
    if login == "none":
        context_path(DEFAULT).unlink()
        monkeypatch.setattr("llamesh.client.profile.Profile.__init__.__defaults__", (published, "", "", ""))
    else:
        save_profile(Profile(published, "token", home=f"{os.environ['HOME']}/.llamesh"))
    assert run(["logs", "gateway"]) == Exit.OK
    assert capsys.readouterr().out == "a line of this machine\n"
    assert run(["doctor", "-o", "json"]) == Exit.FAILED
    found = {item["check"]: item for item in json.loads(capsys.readouterr().out)}
    assert "not running" in found["mesh"]["found"]
    assert f"port {port} is taken by process {os.getpid()}" in found["ports"]["found"]


def test_doctor_sends_no_token_to_a_mesh_elsewhere(published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    class Gateway(gateway_pb2_grpc.GatewayServiceServicer):
        def GetHealth(self, request: Any, context: Any) -> gateway_pb2.Health:
            sent.append(dict(context.invocation_metadata()))
            return gateway_pb2.Health(version=__version__)

    server = grpc.server(ThreadPoolExecutor(1))
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(Gateway(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        save_profile(Profile(f"http://127.0.0.1:{port}", "token"))
        monkeypatch.setenv("LLAMESH_TOKEN", "secret")
        assert run(["doctor"]) == Exit.OK
    finally:
        server.stop(None)
    assert sent
    assert not [metadata for metadata in sent if "authorization" in metadata]


def test_a_file_is_not_handed_over_to_a_mesh_at_a_loopback_address(published: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CommandError, match="home of the mesh at") as raised:
        home_for(load_profile(), tmp_path / "m.gguf")
    assert "llamesh up" not in raised.value.hint


def test_components_are_what_the_mesh_reports() -> None:
    health = gateway_pb2.Health(version="9.9.9")
    health.components.add(name="gateway", status=gateway_pb2.HEALTH_STATE_OK)
    health.components.add(name="store", status=gateway_pb2.HEALTH_STATE_DEGRADED, message="the disk is full")
    health.components.add(name="download", status=gateway_pb2.HEALTH_STATE_DOWN)
    version, gateway, store, download = elsewhere.components(health)
    assert (version.state, "9.9.9" in version.found) == ("warning", True)
    assert (gateway.state, store.state, download.state) == ("ok", "warning", "problem")
    assert store.found == "the disk is full"
    assert "on its machine" in store.fix
    (same,) = elsewhere.components(gateway_pb2.Health(version=__version__))
    assert same.state == "ok"


@pytest.mark.parametrize(("given", "state"), [("", "warning"), ("opaque", "ok")])
def test_the_login_is_checked_without_a_call(given: str, state: str) -> None:
    mesh: Any = SimpleNamespace(transport=SimpleNamespace(token=given))
    assert elsewhere.token(mesh, datetime(2026, 1, 1, tzinfo=UTC)).state == state
