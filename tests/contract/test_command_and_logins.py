"""The command against fakes: which mesh it talks to, which token it sends, and how a login is kept."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamesh import __version__
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.mesh.lock import held
from llamesh.client.contexts import DEFAULT, context_path
from llamesh.client.profile import Profile, load_profile, save_profile, stored_profile
from llamesh.local_mesh import Addresses
from llamesh.v1 import gateway_pb2, server_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, fake_mesh, refuse

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("url")


@pytest.mark.parametrize("address", ["http://localhost:x", "http://localhost:99999", "ftp://localhost", "http://:8200"])
@pytest.mark.parametrize("arguments", [["status"], ["api", "GET", "/status"], ["login", "ada", "--password-stdin"]])
def test_an_address_that_is_none_is_named(
    address: str, arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMESH_URL", address)
    assert run(arguments) == Exit.USAGE
    assert capsys.readouterr().err == f"error: {address!r} is not an address like http://localhost:8200\n"


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["chat", "smol", "Hi"], ["api", "GET", "/status"], ["run", "smol"], ["version"], ["models"]],
    ids=" ".join,
)
def test_the_inference_port_is_named_with_the_right_address(
    arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))
    monkeypatch.setenv("LLAMESH_URL", "127.0.0.1:18080")
    with held(tmp_path, Addresses("http://localhost:18200", "http://localhost:18080")):
        assert run(arguments) == Exit.USAGE
        assert run(["login", "ada", "--url", "http://localhost:18080", "--password-stdin"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "LLAMESH_URL: http://127.0.0.1:18080 is the inference address of the mesh that runs here" in said
    assert "hint: LLAMESH_URL=http://localhost:18200;" in said
    assert "--url: http://localhost:18080 is the inference address" in said
    assert "hint: --url http://localhost:18200;" in said


@pytest.mark.parametrize("reason", ["UNAUTHENTICATED", "NOT_IMPLEMENTED"])
def test_a_login_at_the_port_of_another_service_is_led_to_the_management_port(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, reason: str, tmp_path: Path
) -> None:
    class OtherPort(FakeGateway):
        def CreateToken(self, request: Any, context: Any) -> Any:
            refuse(context, grpc.StatusCode.UNAUTHENTICATED, reason, "a token is needed")

    monkeypatch.setattr("sys.stdin", io.StringIO("right\nright\n"))
    with fake_mesh(OtherPort(), FakeDownloads()) as url:
        login = ["login", "ada", "--url", url, "--password-stdin"]
        assert run(login) == Exit.USAGE
        said = capsys.readouterr().err
        assert f"{url} is the port of another service, not the management address" in said
        assert "hint: --url http://127.0.0.1:8200, unless that mesh has another management port\n" in said
        monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))
        with held(tmp_path, Addresses("http://localhost:18200", "http://localhost:18080")):
            assert run(login) == Exit.USAGE
        assert "hint: --url http://localhost:18200\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["status"], ["models"], ["describe", "smol"], ["rm", "smol"], ["fit", "smol"], ["doctor"]],
    ids=" ".join,
)
@pytest.mark.parametrize("token", ["", "a-token"])
def test_every_command_names_the_right_address_at_the_port_of_another_service(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: list[str], token: str
) -> None:
    class OtherPort(FakeGateway):
        def ListModels(self, request: Any, context: Any) -> Any:
            where = {"service": "download", "port": "18200"}
            refuse(context, grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", "There is no such call here.", where)

        ListServers = GetModel = ListModels

        def GetHealth(self, request: Any, context: Any) -> gateway_pb2.Health:
            return gateway_pb2.Health(version=__version__)

    monkeypatch.setenv("LLAMESH_TOKEN", token)
    with fake_mesh(OtherPort(), FakeDownloads()) as url:
        monkeypatch.setenv("LLAMESH_URL", url)
        assert run(command) == (Exit.FAILED if command == ["doctor"] else Exit.USAGE)
    shown = capsys.readouterr()
    said = shown.out + shown.err
    assert f"{url} is the port of the download service, not the management address of a mesh" in said
    assert "LLAMESH_URL=http://127.0.0.1:18200" in said


def test_a_file_at_the_port_of_another_service_names_the_right_address(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class OtherPort(FakeGateway):
        def GetModel(self, request: Any, context: Any) -> Any:
            where = {"service": "download", "port": "18200"}
            refuse(context, grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", "There is no such call here.", where)

    (tmp_path / "words.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))
    with (
        fake_mesh(OtherPort(), FakeDownloads()) as url,
        held(tmp_path, Addresses("http://localhost:18200", "http://localhost:18080")),
    ):
        monkeypatch.setenv("LLAMESH_URL", url)
        assert run(["pull", str(tmp_path / "words.gguf")]) == Exit.USAGE
    said = capsys.readouterr().err
    assert f"{url} is the port of the download service" in said
    assert "LLAMESH_URL=http://localhost:18200" in said


def test_who_is_not_signed_in_at_another_port_is_told_the_management_address(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class OtherPort(FakeGateway):
        def ListServers(self, request: Any, context: Any) -> Any:
            refuse(context, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "a token is needed")

    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))
    monkeypatch.delenv("LLAMESH_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with (
        fake_mesh(OtherPort(), FakeDownloads()) as url,
        held(tmp_path, Addresses("http://localhost:18200", "http://localhost:18080")),
    ):
        monkeypatch.setenv("LLAMESH_URL", url)
        assert run(["status"]) == Exit.NOT_SIGNED_IN
    said = capsys.readouterr().err
    assert f"you are not signed in at {url}" in said
    assert "the management address of the mesh that runs here is http://localhost:18200" in said


@pytest.mark.parametrize("command", [["status"], ["describe", "smol"]], ids=" ".join)
def test_the_inference_port_of_another_machine_is_named(
    command: list[str], gateway: FakeGateway, url: str, capsys: Capture
) -> None:
    body = '{"error":{"code":"not_found","message":"There is nothing at this path.","param":null}}'

    gateway.refusal = (grpc.StatusCode.UNIMPLEMENTED, "", body)
    assert run(command) == Exit.USAGE
    assert capsys.readouterr().err == (
        f"error: {url} is an inference address, not the management address of a mesh\n"
        "hint: LLAMESH_URL=http://127.0.0.1:8200, unless that mesh has another management port\n"
    )


def test_login_takes_an_address_without_a_scheme(url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMESH_TOKEN")
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    assert run(["login", "ada", "--password-stdin", "--url", url.removeprefix("http://")]) == Exit.OK
    assert load_profile() == Profile(url, "fresh")
    assert "in clear" not in capsys.readouterr().err


def test_a_login_that_fails_names_the_mesh_that_was_asked(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    assert run(["login", "ada", "--password-stdin", "--url", "http://127.0.0.1:1"]) == Exit.UNAVAILABLE
    assert capsys.readouterr().err.startswith("error: the mesh at http://127.0.0.1:1 does not answer\n")


@pytest.mark.parametrize("token", ["to\nken", "tok\u00e9n", "\x1b[31m"])
@pytest.mark.parametrize("arguments", [["status"], ["api", "GET", "/status"]])
def test_a_token_that_no_header_can_carry_is_refused(
    token: str, arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMESH_TOKEN", token)
    assert run(arguments) == Exit.NOT_SIGNED_IN
    assert capsys.readouterr().err == "error: LLAMESH_TOKEN holds no token\nhint: llamesh login\n"


def test_a_token_from_a_file_may_end_with_a_line_end(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_TOKEN", "token\n")
    assert run(["status"]) == Exit.OK


def test_a_login_sends_no_earlier_token_along(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_TOKEN", "earlier")
    for password, code in (("wrong", Exit.NOT_SIGNED_IN), ("right", Exit.OK)):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
        assert run(["login", "ada", "--password-stdin"]) == code
    assert gateway.tokens == ["", ""]


def test_login_keeps_the_token_for_this_user_only(url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMESH_TOKEN")
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    assert run(["login", "ada", "--password-stdin"]) == Exit.NOT_SIGNED_IN
    assert not context_path(DEFAULT).exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    assert run(["login", "ada", "--password-stdin"]) == Exit.OK
    assert context_path(DEFAULT).stat().st_mode & 0o777 == 0o600
    assert load_profile() == Profile(url, "fresh")
    assert "fresh" not in capsys.readouterr().err


def test_a_login_in_a_selected_context_is_kept_there(
    url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMESH_TOKEN")
    monkeypatch.delenv("LLAMESH_URL")
    monkeypatch.setattr("sys.stdin", io.StringIO("right\nright\n"))
    assert run(["context", "add", "lab", url, "--use"]) == Exit.OK
    assert run(["login", "ada", "--password-stdin"]) == Exit.OK
    assert load_profile() == Profile(url, "fresh")
    assert stored_profile() is None
    assert run(["status"]) == Exit.OK
    assert run(["context", "add", "unused", "http://127.0.0.1:1", "--use"]) == Exit.OK
    assert run(["login", "ada", "--password-stdin", "--url", url]) == Exit.OK
    assert stored_profile() == Profile(url, "fresh")
    assert "to use this mesh: llamesh context use default" in capsys.readouterr().err


def test_a_token_goes_only_to_the_mesh_that_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMESH_TOKEN")
    save_profile(Profile("https://mesh.example", "secret"))
    assert load_profile().token == ""
    monkeypatch.delenv("LLAMESH_URL")
    assert load_profile() == Profile("https://mesh.example", "secret")


@pytest.mark.parametrize(
    "command",
    [
        ["stop", "smol"],
        ["status"],
        ["models"],
        ["chat", "smol", "Hello"],
        ["api", "GET", "/status"],
        ["login", "ada", "--password-stdin"],
        ["version"],
    ],
    ids=" ".join,
)
def test_a_home_without_a_mesh_leaves_the_mesh_of_the_login_alone(
    command: list[str],
    gateway: FakeGateway,
    url: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    gateway.servers = [server_pb2.Server(server_uuid="0f0c6a0e", model_name="smol")]
    save_profile(Profile(url, "token"))
    monkeypatch.delenv("LLAMESH_URL")
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    assert run(command) == Exit.UNAVAILABLE
    said = capsys.readouterr()
    assert said.err.startswith(f"error: no mesh runs in LLAMESH_HOME={tmp_path / 'home'}\n")
    assert f"without LLAMESH_HOME the mesh at {url} is used" in said.err
    assert not said.out or command == ["version"]
    assert len(gateway.servers) == 1


def test_the_version_is_json_for_programs_even_if_no_mesh_answers(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMESH_URL", "http://localhost:1")
    assert run(["version", "-o", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"version": __version__, "mesh_version": None, "mesh_url": "http://localhost:1"}


def test_an_address_that_is_given_needs_no_mesh_in_the_home(
    url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LLAMESH_TOKEN")
    monkeypatch.delenv("LLAMESH_URL")
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    assert run(["login", "ada", "--password-stdin", "--url", url]) == Exit.OK
    assert "LLAMESH_HOME is set, so other commands use the mesh that it names" in capsys.readouterr().err
    monkeypatch.setenv("LLAMESH_URL", url)
    assert run(["status"]) == Exit.OK


def a_token(**claims: str) -> str:
    """A token as the mesh makes them, without a signature."""
    return "e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".x"


@pytest.mark.parametrize(
    ("kept", "given", "after", "said"),
    [
        ({"sub": "ada", "jti": "4f1c"}, None, "fresh", "you are logged in again"),
        ({"sub": "root", "jti": "4f1c"}, None, None, "its earlier logins have ended, its keys have not\n"),
        ({"sub": "root", "jti": "4f1c"}, {"sub": "ada", "jti": "4f1c"}, None, "LLAMESH_TOKEN has ended too"),
        ({"sub": "root", "jti": "4f1c"}, {"sub": "ada", "jti": "key_1"}, None, "its keys have not\n"),
    ],
)
def test_whoever_sets_its_own_password_is_logged_in_again(
    url: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    kept: dict,
    given: dict | None,
    after: str | None,
    said: str,
) -> None:
    token = a_token(**kept)
    save_profile(Profile(url, token))
    monkeypatch.delenv("LLAMESH_TOKEN")
    if given:
        monkeypatch.setenv("LLAMESH_TOKEN", a_token(**given))
    monkeypatch.setattr("sys.stdin", io.StringIO("before\nright\n"))
    assert run(["users", "password", "ada", "--password-stdin"]) == Exit.OK
    assert said in capsys.readouterr().err
    monkeypatch.delenv("LLAMESH_TOKEN", raising=False)
    assert load_profile().token == (after or token)


def test_nothing_is_asked_without_a_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["login", "ada"]) == Exit.USAGE
    assert run(["users", "create", "ada"]) == Exit.USAGE
    assert "--password-stdin" in capsys.readouterr().err


def test_the_mesh_is_told_to_programs_as_variables(url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_INFERENCE_URL", "http://localhost:9080/")
    monkeypatch.setenv("LLAMESH_TOKEN", "it's")
    assert run(["env", "--manage", "--output", "json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out) == {
        "LLAMESH_URL": url,
        "LLAMESH_INFERENCE_URL": "http://localhost:9080",
        "LLAMESH_TOKEN": "it's",
        "OPENAI_BASE_URL": "http://localhost:9080/v1",
        "OPENAI_API_KEY": "it's",
    }
    monkeypatch.setenv("LLAMESH_TOKEN", "it's $HOME")
    assert run(["env", "--manage"]) == Exit.OK
    script = f'{capsys.readouterr().out}printf %s "$LLAMESH_TOKEN"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == "it's $HOME"
    monkeypatch.delenv("LLAMESH_TOKEN")
    assert run(["env", "--manage"]) == Exit.OK
    said = capsys.readouterr().out.splitlines()
    assert {"unset LLAMESH_TOKEN", "export OPENAI_API_KEY=not-needed"} <= set(said)
