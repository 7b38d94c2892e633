"""A path that begins with ~USER is that user's; without such a user the argument is named, and nothing is called a defect."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.cli import api
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.kit.config_loading import WrongSettingsError, load_settings
from llamesh.locations import expanded

NOBODY = "~no-such-user"


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without a mesh."""
    for name in ("LLAMESH_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def test_the_error_begins_with_the_name_of_the_argument() -> None:
    with pytest.raises(ValueError, match=f"^FILE: the home directory {NOBODY} is not known$"):
        expanded(f"{NOBODY}/x", "FILE")
    assert expanded("./~x") == Path("./~x")


@pytest.mark.parametrize("command", [["backup"], ["restore"], ["tls", "trust"], ["pull"]], ids=lambda words: words[-1])
def test_a_command_names_its_argument(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMESH_URL", "http://127.0.0.1:1")
    assert run([*command, f"{NOBODY}/x.gguf"]) == Exit.USAGE
    shown = capsys.readouterr().err
    assert f"the home directory {NOBODY} is not known" in shown
    assert "defect" not in shown


def test_a_body_is_read_below_a_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "body.json").write_text("{}")
    assert api._body("@~/body.json") == b"{}"
    with pytest.raises(ValueError, match=f"^--data: the home directory {NOBODY} is not known$"):
        api._body(f"@{NOBODY}/x")


@pytest.mark.parametrize("setting", ["LLAMESH_HOME", "LLAMESH_CA"])
def test_a_command_names_its_setting(
    setting: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if setting == "LLAMESH_CA":
        monkeypatch.setenv("LLAMESH_URL", "https://127.0.0.1:1")
    monkeypatch.setenv(setting, f"{NOBODY}/x")
    assert run(["api", "GET", "/models"]) == Exit.USAGE
    assert capsys.readouterr().err.startswith(f"error: {setting}: the home directory {NOBODY} is not known\n")


@pytest.mark.parametrize("setting", ["LLAMESH_HOME", "LLAMESH_IMPORT_DIRS"])
def test_a_member_names_its_setting(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(setting, f"{NOBODY}/x")
    with pytest.raises((WrongSettingsError, ValueError), match=setting):
        load_settings()
