"""`llamesh env` gives programs a key for inference that ends soon, and the token of a login only if it is asked for."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from llamesh.cli import inference_key
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.client.contexts import config_folder
from llamesh.v1 import contract_pb2

Capture = pytest.CaptureFixture[str]
HOUR = 3600
WORKS, REVOKED = contract_pb2.KEY_STATE_WORKS, contract_pb2.KEY_STATE_REVOKED


def a_token(**claims: Any) -> str:
    """A token as the mesh makes them, without a signature."""
    return "e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".x"


def a_key(number: int, hours: float = 24) -> str:
    return a_token(sub="ada", jti=f"key_{number}", scopes=["infer:*"], exp=time.time() + hours * HOUR)


LOGIN = a_token(sub="ada", jti="4f1c", scopes=["infer:*", "manage"], exp=4102444800)


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MagicMock:
    """A fake of the client whose mesh makes key_0, key_1 and so on."""
    fake = MagicMock()
    fake.__enter__.return_value = fake
    fake.profile = SimpleNamespace(url="http://localhost:8200")
    fake.keys.list.return_value = []

    def create(name: str, days: int) -> contract_pb2.CreateKeyResponse:
        assert days == 1
        known = fake.keys.list.return_value
        known.append(contract_pb2.Key(key_id=f"key_{len(known)}", owner="ada", state=WORKS))
        return contract_pb2.CreateKeyResponse(key=known[-1], token=a_key(len(known) - 1))

    fake.keys.create.side_effect = create
    monkeypatch.setattr(inference_key, "connected", lambda: fake)
    for name, value in {
        "XDG_CONFIG_HOME": str(tmp_path),
        "LLAMESH_URL": fake.profile.url,
        "LLAMESH_INFERENCE_URL": "http://localhost:8080",
        "LLAMESH_TOKEN": LOGIN,
    }.items():
        monkeypatch.setenv(name, value)
    return fake


def given(capsys: Capture, *options: str) -> dict[str, str]:
    assert run(["env", *options, "--output", "json"]) == Exit.OK
    found: dict[str, str] = json.loads(capsys.readouterr().out)
    return found


def key_of(token: str) -> str:
    return inference_key.key_id_of(token)


def test_a_login_is_not_given_unless_it_is_asked_for(mesh: MagicMock, capsys: Capture) -> None:
    found = given(capsys)
    assert "LLAMESH_TOKEN" not in found
    assert LOGIN not in found.values()
    assert key_of(found["OPENAI_API_KEY"]) == "key_0"
    asked = given(capsys, "--manage")
    assert (asked["LLAMESH_TOKEN"], key_of(asked["OPENAI_API_KEY"])) == (LOGIN, "key_0")
    kept = config_folder() / "env_key.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change",
    [
        lambda mesh: setattr(mesh.keys.list.return_value[0], "state", REVOKED),
        lambda mesh: setattr(mesh.keys.list.return_value[0], "owner", "eve"),
        lambda mesh: setattr(mesh.profile, "url", "http://localhost:8201"),
        lambda mesh: (config_folder() / "env_key.json").write_text("{"),
        lambda mesh: inference_key.write_private(
            (config_folder() / "env_key.json"),
            json.dumps({"url": mesh.profile.url, "token": a_key(0, hours=11)}).encode(),
        ),
    ],
    ids=["revoked", "of another user", "of another mesh", "not to be read", "ends soon"],
)
def test_a_key_that_will_not_do_is_replaced(mesh: MagicMock, capsys: Capture, change: Any) -> None:
    assert key_of(given(capsys)["OPENAI_API_KEY"]) == "key_0"
    change(mesh)
    assert key_of(given(capsys)["OPENAI_API_KEY"]) == "key_1"
    assert key_of(given(capsys)["OPENAI_API_KEY"]) == "key_1"


@pytest.mark.parametrize(
    "token",
    [a_key(7), a_token(scopes=["infer:*", "metrics"]), "no token of a mesh", ""],
    ids=["for inference", "for metrics too", "not to be read", "none"],
)
def test_a_token_that_may_not_create_keys_is_printed_unchanged(
    token: str, mesh: MagicMock, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMESH_TOKEN", token)
    assert given(capsys)["OPENAI_API_KEY"] == (token or "not-needed")
    mesh.keys.create.assert_not_called()


@pytest.mark.parametrize("words", ['eval "$1"', "eval $1"], ids=["quoted", "unquoted"])
def test_a_shell_takes_the_variables_and_a_person_reads_when_they_end(
    words: str, mesh: MagicMock, capsys: Capture
) -> None:
    assert run(["env", "--manage"]) == Exit.OK
    shown = capsys.readouterr().out
    *_, login, key = shown.splitlines()
    assert login == "# LLAMESH_TOKEN ends at 2100-01-01 00:00:00Z"
    assert key.startswith("# OPENAI_API_KEY ends at ")
    assert key.endswith("; before: llamesh keys revoke key_0")
    script = f'{words}; printf %s "$LLAMESH_TOKEN $OPENAI_BASE_URL"'
    done = subprocess.run(["sh", "-c", script, "sh", shown], env={}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{LOGIN} http://localhost:8080/v1"
