"""What is written into the settings' file or environment counts, or is refused or warned of by name; a value is never shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llamesh.cli.mesh.checks import examine
from llamesh.cli.mesh.settings import read_settings
from llamesh.kit import config_loading
from llamesh.kit.config_loading import WrongSettingsError, load_settings, readable_settings, warnings
from llamesh.kit.config_sources import ENVIRONMENT_ONLY
from llamesh.text_files import MAX_BYTES, MAX_LINE_BYTES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))
    return tmp_path / "config.env"


def test_every_unambiguous_line_of_the_settings_file_is_read(file: Path) -> None:
    lines = (
        "\ufeff# a comment",
        "",
        "export MAX_REPLICAS=7",
        "llamesh_bind = '127.0.0.2'  # here",
        "LLAMESH_MINIO_BUCKET=mine\r",
        'JWT_SECRET="a secret of',
        'more than two lines and words"',
    )
    file.write_text("\n".join(lines), encoding="utf-8")
    found = load_settings()
    assert (found.max_replicas, found.bind, found.minio_bucket) == (7, "127.0.0.2", "mine")
    assert found.jwt_secret is not None
    assert "\n" in found.jwt_secret.get_secret_value()


@pytest.mark.parametrize("wrong", ["", "\nJWT_EXPIRY_HOURS=0"])
def test_an_empty_variable_does_not_hide_a_line_of_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("LLAMESH_BIND", "")
    monkeypatch.setenv("JWT_EXPIRY_HOURS", "")
    file.write_text(f"LLAMESH_BIND=127.0.0.2{wrong}")
    settings, problems = config_loading.readable_settings()
    assert (settings.bind, len(problems)) == ("127.0.0.2", int(bool(wrong)))


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("\n\nMAX_REPLICA=7", 3, "MAX_REPLICA is not a setting: did you mean MAX_REPLICAS?"),
        ("LLAMESH_GATWAY_PORT=1", 1, "did you mean LLAMESH_GATEWAY_PORT?"),
        ("POSTGRES_USER=admin", 1, "POSTGRES_USER is not a setting: DATABASE_URL contains it"),
        ("PATH=/x", 1, "PATH is not a setting: docs/reference/settings.md lists all"),
        ("MAX_REPLICAS=7\nMAX_REPLICAS 8\n", 2, "it is not NAME=value"),
        ("# c\nMAX_REPLICAS\n", 2, "it is not NAME=value"),
        ("MAX_REPLICAS: 8", 1, "it is not NAME=value"),
        ("=8", 1, "it is not NAME=value"),
        ('MAX_REPLICAS="8', 1, "quotes must be closed"),
        ("MAX_REPLICAS=7\n\nmax_replicas=8", 3, "MAX_REPLICAS is already set on line 1: keep one"),
        ("LLAMESH_HOME=/elsewhere", 1, "LLAMESH_HOME is read from the environment only: set it there"),
        ("LLAMESH_URL=http://x", 1, "LLAMESH_URL is read from the environment only"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused_with_its_number(
    file: Path, content: str, line: int, words: str
) -> None:
    file.write_text(content)
    with pytest.raises(WrongSettingsError) as refused:
        load_settings()
    (problem,) = refused.value.problems
    assert problem.startswith(f"line {line} of {file}: ")
    assert words in problem


def test_everything_that_is_wrong_is_said_at_once_and_no_value(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_REFLECTION", "maybe")
    file.write_text("JWT_SECRT=topsecret\ntopsecret word\n")
    with pytest.raises(WrongSettingsError) as refused:
        load_settings()
    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        f"line 1 of {file}",
        f"line 2 of {file}",
        "setting LLAMESH_REFLECTION",
    ]
    assert "topsecret" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    file.mkdir()
    with pytest.raises(WrongSettingsError, match="is no regular file"):
        load_settings()
    file.rmdir()
    file.write_bytes(b"MAX_REPLICAS=7\nMINIO_BUCKET=\xff\n")
    with pytest.raises(WrongSettingsError, match=f"line 2 of {file} is not UTF-8"):
        load_settings()
    file.write_bytes(b"MAX_REPLICAS=7\nMINIO_BUCKET=a\0b\n")
    with pytest.raises(WrongSettingsError, match=f"line 2 of {file} holds a NUL byte"):
        load_settings()
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(WrongSettingsError, match=f"has more than {MAX_BYTES} bytes"):
        load_settings()
    file.write_bytes(b"MAX_REPLICAS=7\nMINIO_BUCKET=a" + b" " * MAX_LINE_BYTES + b"b\n")
    with pytest.raises(WrongSettingsError, match=f"line 2 of {file} has more than {MAX_LINE_BYTES} bytes: shorten it"):
        load_settings()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(WrongSettingsError, match="is no regular file"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pipe", "{named} is no regular file but a pipe"),
        ("folder", "{named} is no regular file but a folder"),
        ("/dev/zero", "/dev/zero is no regular file but a device"),
        ("missing", "there is no file {named}"),
        ("file/below", "there is no file {named}"),
    ],
)
def test_what_llamesh_config_names_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMESH_CONFIG", str(tmp_path / name))
    said = [f"setting LLAMESH_CONFIG: {words.format(named=tmp_path / name)}"]
    with pytest.raises(WrongSettingsError) as refused:
        load_settings()
    assert refused.value.problems == said
    assert readable_settings()[1] == said


def test_no_file_is_no_problem(file: Path) -> None:
    assert not file.exists()
    assert load_settings().home == file.parent


def test_an_unknown_variable_of_the_environment_causes_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_DRAIN_SECOND", "3")
    monkeypatch.setenv("llamesh_whatever_else_this_is", "3")
    monkeypatch.setenv("LLAMESH_TOKEN", "t")
    monkeypatch.setenv("llamesh_bind", "127.0.0.1")
    assert warnings() == [
        "LLAMESH_DRAIN_SECOND is not a setting and is ignored: did you mean LLAMESH_DRAIN_SECONDS?",
        "llamesh_whatever_else_this_is is not a setting and is ignored: docs/reference/settings.md lists all",
    ]


def test_doctor_and_up_show_it(tmp_path: Path) -> None:
    environment = {**os.environ, "LLAMESH_HOME": str(tmp_path), "LLAMESH_DRAIN_SECOND": "3"}
    (words,) = read_settings(environment).warnings
    assert words.startswith("LLAMESH_DRAIN_SECOND is not a setting")
    found = [item for item in examine(environment) if item.check == "settings"]
    assert [(item.state, item.found) for item in found] == [("ok", f"home {tmp_path}"), ("warning", words)]
    (tmp_path / "config.env").write_text("MAX_REPLICA=3\n")
    wrong, warned = [item for item in examine(environment) if item.check == "settings"]
    assert (warned.state, warned.found) == ("warning", words)
    assert (wrong.state, f"line 1 of {tmp_path / 'config.env'}: MAX_REPLICA is not a setting" in wrong.found) == (
        "problem",
        True,
    )
    refused = subprocess.run(
        [sys.executable, "-m", "llamesh.cli.main", "up"], env=environment, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, "did you mean MAX_REPLICAS?" in refused.stderr) == (2, True), refused.stderr


def test_every_variable_that_a_program_reads_is_known() -> None:
    sources = [
        path for folder in ("llamesh", "controller", "engine", "services") for path in (ROOT / folder).rglob("*.py")
    ]
    read = {name for path in sources for name in re.findall(r"\bLLAMESH_[A-Z_]+[A-Z]\b", path.read_text())}
    assert read <= config_loading._names() | ENVIRONMENT_ONLY
    assert len(read) > 20
