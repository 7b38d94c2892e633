"""A context keeps the address and the login of a mesh under a name; what selects one is followed, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.mesh.lock import held
from llamesh.client.contexts import (
    DEFAULT,
    ContextNotFoundError,
    ContextUnreadableError,
    config_folder,
    context_names,
    context_path,
    select_context,
    selected_context,
)
from llamesh.client.profile import Profile, context_of, load_profile, save_profile, stored_profile
from llamesh.local_mesh import Addresses

HERE = Addresses("http://localhost:18200", "http://localhost:18080")
LAB = "https://lab.example"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of contexts; the environment names no mesh."""
    for name in ("LLAMESH_URL", "LLAMESH_HOME", "LLAMESH_TOKEN", "LLAMESH_CONTEXT", "LLAMESH_INFERENCE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("llamesh.locations.DEFAULT_HOME", tmp_path / "home")
    return config_folder()


def test_the_selected_context_gives_address_and_token() -> None:
    save_profile(Profile(LAB, "secret"), context="lab")
    save_profile(Profile("https://other.example", "other"))
    assert load_profile() == Profile("https://other.example", "other")
    select_context("lab")
    assert load_profile() == Profile(LAB, "secret")
    select_context(DEFAULT)
    assert load_profile() == Profile("https://other.example", "other")


def test_one_shell_may_use_another_context(monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(Profile(LAB, "secret"), context="lab")
    save_profile(Profile("https://edge.example", "more"), context="edge")
    select_context("lab")
    monkeypatch.setenv("LLAMESH_CONTEXT", "edge")
    assert load_profile() == Profile("https://edge.example", "more")
    monkeypatch.setenv("LLAMESH_CONTEXT", DEFAULT)
    assert load_profile() == Profile()


def test_what_is_more_explicit_goes_before_the_selected_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_profile(Profile(LAB, "secret"), context="lab")
    select_context("lab")
    monkeypatch.setenv("LLAMESH_URL", "https://third.example")
    assert load_profile() == Profile("https://third.example")
    monkeypatch.setenv("LLAMESH_URL", LAB)
    assert load_profile() == Profile(LAB, "secret")
    monkeypatch.delenv("LLAMESH_URL")
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))
    with held(tmp_path, HERE):
        assert load_profile().url == HERE.management
        monkeypatch.setenv("LLAMESH_CONTEXT", "lab")
        assert load_profile() == Profile(LAB, "secret")
        monkeypatch.setenv("LLAMESH_CONTEXT", DEFAULT)
        assert load_profile() == Profile()


def test_a_context_of_a_tunnel_is_not_the_mesh_that_runs_here(tmp_path: Path) -> None:
    save_profile(Profile("http://localhost:9200", "secret"), context="tunnel")
    select_context("tunnel")
    (tmp_path / "home").mkdir()
    with held(tmp_path / "home", HERE):
        assert load_profile() == Profile("http://localhost:9200", "secret")


@pytest.mark.parametrize("damage", ["missing", "garbage", "name"])
def test_a_context_that_cannot_be_used_selects_no_other_mesh(
    damage: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    save_profile(Profile(LAB, "secret"), context="lab")
    save_profile(Profile("https://other.example", "other"))
    select_context("lab")
    if damage == "missing":
        context_path("lab").unlink()
    elif damage == "garbage":
        context_path("lab").write_text("{")
    else:
        monkeypatch.setenv("LLAMESH_CONTEXT", "../profile")
    with pytest.raises(ContextUnreadableError if damage == "garbage" else ContextNotFoundError):
        load_profile()
    assert run(["status"]) == Exit.USAGE
    said = capsys.readouterr().err
    if damage == "garbage":
        assert said.startswith("error: the context 'lab' cannot be read: ")
        assert "hint: `llamesh context rm lab`, then `llamesh context add lab URL`" in said
    else:
        assert said.startswith("error: no context is named ")
        assert "hint: `llamesh context` lists them; " in said
    monkeypatch.setenv("LLAMESH_URL", "https://third.example")
    assert load_profile() == Profile("https://third.example")


def test_a_login_is_kept_where_its_mesh_is_kept() -> None:
    save_profile(Profile(LAB), context="lab")
    assert context_of(LAB) == DEFAULT
    select_context("lab")
    assert context_of(LAB) == "lab"
    assert context_of("https://other.example") == DEFAULT


def test_the_command_adds_lists_selects_and_forgets(capsys: Capture) -> None:
    assert run(["context", "add", "lab", "lab.example:8200", "--use"]) == Exit.OK
    assert run(["context", "add", "edge", "https://edge.example", "--inference-url", "https://m.example"]) == Exit.OK
    save_profile(Profile("http://lab.example:8200", "secret"), context="lab")
    capsys.readouterr()
    assert run(["context", "list", "-o", "json"]) == Exit.OK
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert [(item["name"], item["selected"], item["url"], item["login"]) for item in json.loads(shown)] == [
        (DEFAULT, False, "", ""),
        ("edge", False, "https://edge.example", ""),
        ("lab", True, "http://lab.example:8200", "kept"),
    ]
    assert stored_profile(context="edge") == Profile("https://edge.example", "", "https://m.example")
    assert run(["context", "use", "edge"]) == Exit.OK
    assert selected_context() == "edge"
    assert run(["context", "rm", "edge", "lab"]) == Exit.OK
    assert (selected_context(), context_names()) == (DEFAULT, [DEFAULT])


def test_files_of_contexts_are_for_this_user_only(folder: Path) -> None:
    assert run(["context", "add", "lab", LAB]) == Exit.OK
    assert (folder / "contexts").stat().st_mode & 0o777 == 0o700
    assert context_path("lab").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "lab", LAB], "there is a context 'lab'"),
        (["add", "default", LAB], "there is a context 'default'"),
        (["add", "../x", LAB], "'../x' is not a name of a context"),
        (["add", "Lab", LAB], "'Lab' is not a name of a context"),
        (["add", "new", "ftp://x"], "'ftp://x' is not an address"),
        (["add", "new", "https://user:pw@x"], "is not an address"),
        (["add", "new", "https://x/v1"], "'https://x/v1' is not an address"),
        (["rm", "default"], "the context `default` always exists"),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str, capsys: Capture) -> None:
    save_profile(Profile(LAB), context="lab")
    assert run(["context", *arguments]) == Exit.USAGE
    assert words in capsys.readouterr().err
    assert context_names() == [DEFAULT, "lab"]


@pytest.mark.parametrize("command", ["use", "rm"])
def test_a_context_that_does_not_exist_is_not_found(command: str, capsys: Capture) -> None:
    assert run(["context", command, "nolab"]) == Exit.NOT_FOUND
    assert "no context is named 'nolab'" in capsys.readouterr().err


def test_a_shell_that_names_the_context_itself_is_told_nothing(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_profile(Profile(LAB), context="lab")
    monkeypatch.setenv("LLAMESH_CONTEXT", "lab")
    monkeypatch.setenv("LLAMESH_HOME", "/elsewhere")
    assert run(["context", "use", "lab"]) == Exit.OK
    assert "unset" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["LLAMESH_URL", "LLAMESH_CONTEXT", "LLAMESH_HOME"])
def test_a_shell_that_uses_another_mesh_is_told(name: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(Profile(LAB), context="lab")
    monkeypatch.setenv(name, "elsewhere")
    assert run(["context", "use", "lab"]) == Exit.OK
    assert f"{name} is set, so this shell uses what it names; to use lab here: unset {name}" in capsys.readouterr().err
