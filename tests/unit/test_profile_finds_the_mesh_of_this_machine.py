"""A command uses the mesh it was given: LLAMESH_URL, else the mesh of LLAMESH_HOME at whatever ports it has, else the login."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from llamesh.cli.inference import inference_address, seen_from_here
from llamesh.cli.mesh.lock import announce_ready, held, holder, is_gone, is_ready
from llamesh.client.contexts import DEFAULT, context_path
from llamesh.client.profile import (
    DEFAULT_URL,
    NoMeshRunsError,
    Profile,
    home_of,
    load_profile,
    save_profile,
    stored_profile,
)
from llamesh.local_mesh import Addresses, lock_file, running_here

HERE = Addresses("http://localhost:18200", "http://localhost:18080")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a command that was given a home."""
    return {"LLAMESH_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a command that was given no home: the usual one counts."""
    monkeypatch.setattr("llamesh.locations.DEFAULT_HOME", tmp_path)
    return {"XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Addresses]:
    with held(tmp_path, HERE):
        yield HERE


def test_without_a_mesh_there_are_the_usual_ports(usual: dict[str, str], tmp_path: Path) -> None:
    assert load_profile(usual).url == DEFAULT_URL
    with held(tmp_path, HERE):
        pass
    lock_file(tmp_path).write_text('{"management": "http://localhost:1", "inference": "http://localhost:2"}')
    assert running_here(usual) is None
    assert load_profile(usual).url == DEFAULT_URL


@pytest.mark.parametrize("url", ["http://localhost:28200", "https://mesh.example"])
def test_a_home_without_a_mesh_is_said_and_no_other_mesh_is_used(environment: dict[str, str], url: str) -> None:
    save_profile(Profile(url, "token"), environment)
    with pytest.raises(NoMeshRunsError) as refused:
        load_profile(environment)
    assert str(refused.value) == f"no mesh runs in LLAMESH_HOME={environment['LLAMESH_HOME']}"
    assert refused.value.logged_in == url


@pytest.mark.usefixtures("mesh")
def test_a_home_that_is_given_goes_before_a_login_elsewhere(environment: dict[str, str]) -> None:
    save_profile(Profile("https://mesh.example", "secret"), environment)
    assert load_profile(environment) == Profile(HERE.management, "", HERE.inference)


@pytest.mark.usefixtures("mesh")
def test_the_mesh_that_runs_here_is_found(environment: dict[str, str], tmp_path: Path) -> None:
    assert load_profile(environment) == Profile(HERE.management, "", HERE.inference)
    announce_ready(tmp_path)
    assert load_profile(environment) == Profile(HERE.management, "", HERE.inference)
    found = holder(tmp_path)
    assert found is not None
    assert is_ready(tmp_path, found.pid)


@pytest.mark.usefixtures("mesh")
def test_a_token_of_this_machine_stays_good_when_the_ports_move(environment: dict[str, str]) -> None:
    save_profile(Profile("http://localhost:28200", "token", "http://localhost:28080"), environment)
    assert load_profile(environment) == Profile(HERE.management, "token", HERE.inference)


@pytest.mark.parametrize("given", ["", "http://localhost:18200"])
def test_a_token_of_a_mesh_that_has_ended_is_not_sent(usual: dict[str, str], tmp_path: Path, given: str) -> None:
    """Another user's program may listen at the ports of the mesh that has ended."""
    environment = {**usual, "LLAMESH_URL": given}
    with held(tmp_path, HERE):
        save_profile(
            Profile(HERE.management, "token", HERE.inference, home_of(HERE.management, environment)), environment
        )
        assert load_profile(environment).token == "token"
    assert load_profile(environment).token == ""
    with held(tmp_path, HERE):
        assert load_profile(environment).token == "token"
    assert home_of(HERE.management, environment) == ""


@pytest.mark.usefixtures("mesh")
def test_a_login_at_another_mesh_stays_in_use(usual: dict[str, str]) -> None:
    elsewhere = Profile("https://mesh.example", "secret")
    save_profile(elsewhere, usual)
    assert load_profile(usual) == elsewhere


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize("url", ["http://localhost:9", "https://mesh.example", "http://localhost:x", "http://nonsense"])
def test_llamesh_url_wins(environment: dict[str, str], url: str) -> None:
    save_profile(Profile("http://localhost:28200", "token", ""), environment)
    assert load_profile({**environment, "LLAMESH_URL": url}) == Profile(url)


@pytest.mark.usefixtures("mesh")
def test_llamesh_url_of_the_mesh_here_knows_its_inference_address(environment: dict[str, str]) -> None:
    url = "http://127.0.0.1:18200"
    assert load_profile({**environment, "LLAMESH_URL": url}) == Profile(url, "", HERE.inference)


@pytest.mark.usefixtures("mesh")
def test_a_home_that_was_removed_is_noticed(tmp_path: Path) -> None:
    assert not is_gone(tmp_path)
    lock_file(tmp_path).unlink()
    assert is_gone(tmp_path)
    announce_ready(tmp_path)
    assert is_gone(tmp_path)


@pytest.mark.parametrize(
    ("url", "inference"),
    [
        ("http://localhost:8200", "http://localhost:8080"),
        ("http://mesh.example", "http://mesh.example:8080"),
        ("http://[::1]:8200", "http://[::1]:8080"),
        ("https://192.0.2.2:8200", "https://192.0.2.2:8080"),
        ("https://[fd00::7]:8200/", "https://[fd00::7]:8080"),
        ("https://mesh.example/", "https://mesh.example"),
        ("https://mesh.example:443", "https://mesh.example:443"),
    ],
)
def test_the_inference_address_beside_the_default_management_address_is_known(url: str, inference: str) -> None:
    assert Profile(url).inference == inference


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_beside_a_port_that_was_moved_nothing_is_guessed(scheme: str) -> None:
    url = f"{scheme}://192.0.2.2:24200"
    assert Profile(url, "", f"{scheme}://192.0.2.2:24080/").inference == f"{scheme}://192.0.2.2:24080"
    with pytest.raises(ValueError, match=f"{url} is not known: set LLAMESH_INFERENCE_URL"):
        _ = Profile(url).inference


def test_the_mesh_says_its_inference_address_over_tls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = MagicMock()
    mesh.__enter__.return_value.servers.list.return_value = [SimpleNamespace(endpoint="https://localhost:24080/u/v1")]
    monkeypatch.setattr("llamesh.cli.inference.connected", lambda: mesh)
    assert inference_address(Profile("https://192.0.2.2:24200")) == "https://192.0.2.2:24080"


@pytest.mark.parametrize(
    ("endpoint", "url", "seen"),
    [
        ("http://localhost:9080/u/v1", "http://localhost:9200", "http://localhost:9080"),
        ("http://localhost:9080/u/v1", "http://10.0.0.7:9200", "http://10.0.0.7:9080"),
        ("http://localhost:9080/u/v1", "http://[::1]:9200", "http://[::1]:9080"),
        ("https://localhost:9080/u/v1", "https://10.0.0.7:9200", "https://10.0.0.7:9080"),
        ("https://models.example/u/v1", "http://10.0.0.7:9200", "https://models.example"),
    ],
)
def test_an_endpoint_is_seen_from_here(endpoint: str, url: str, seen: str) -> None:
    assert seen_from_here(endpoint, url) == seen


@pytest.mark.parametrize("url", ["mesh.lan:8200", " http://mesh.lan:8200/ "])
def test_an_address_without_a_scheme_is_one_of_http(environment: dict[str, str], url: str) -> None:
    told = load_profile({**environment, "LLAMESH_URL": url, "LLAMESH_INFERENCE_URL": "mesh.lan:8080"})
    assert (told.url, told.inference) == ("http://mesh.lan:8200", "http://mesh.lan:8080")


@pytest.mark.parametrize("content", [b"\xff", b"\0", b"[" * 100_000], ids=["no text", "NUL", "nested"])
def test_a_damaged_profile_is_none(tmp_path: Path, content: bytes) -> None:
    file = context_path(DEFAULT, {"XDG_CONFIG_HOME": str(tmp_path)})
    file.parent.mkdir()
    file.write_bytes(content)
    assert stored_profile({"XDG_CONFIG_HOME": str(tmp_path)}) is None
