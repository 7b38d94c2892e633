"""`llamesh set` and `describe` on a real mesh: a change is in force, kept and told."""

from __future__ import annotations

import json
import re

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from tests.mesh.running import RunningMesh


@pytest.fixture
def server(mesh: RunningMesh, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LLAMESH_URL", mesh.url("gateway", ""))
    monkeypatch.setenv("LLAMESH_TOKEN", mesh.token)
    mesh.add_model("set-model")
    made = mesh.serve("set-model", model_name="set-me", runtime_params="--ctx-size 512 --parallel 1")
    return str(made["server_uuid"])


def test_a_server_is_set_and_described(mesh: RunningMesh, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["set", "set-me", "--ctx-size", "1024", "--idle-sleep", "10m", "--wait"]) == Exit.OK
    said = capsys.readouterr().err
    assert "parameters.ctx_size: 512 -> 1024" in said
    assert "replaced one after the other" in said
    assert run(["set", "set-me", "--idle-sleep", "0", "--unset", "ctx-size"]) == Exit.OK
    assert "idle_sleep: 600s -> " in capsys.readouterr().err
    assert run(["describe", "set-me"]) == Exit.OK
    shown = capsys.readouterr().out
    assert "Idle sleep  never" in shown
    assert "Context     4096 tokens of 4096 for each of 1 slots" in shown
    assert re.search(r"Memory      [0-9.]+ [KM]iB estimated for 1 engine; each: weights 8", shown)
    assert run(["serve", "set-model", "--name", "set-too", "--parallel", "1", "-o", "json"]) == Exit.OK
    twin = capsys.readouterr()
    assert f"`llamesh scale {server} 2`" in twin.err
    for uuid in (server, json.loads(twin.out)["server_uuid"]):
        assert mesh.call("DELETE", f"/stop/{uuid}").status_code == 200
