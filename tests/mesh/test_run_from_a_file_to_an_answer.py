"""`llamesh run` and `llamesh pull` on a whole mesh: a file of this disk becomes an answer in one command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from llamesh.cli.failure import Exit
from llamesh.locations import handed_over_directory
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh
from tests.terminal import terminal

PULLED = {
    60: [
        "MODEL                 SIZE        QUANT   STATE   CONTEXT",
        "─" * 57,
        "Small-Words-60.gguf   845.3 KiB   Q8_0    ready   8192",
        "no room for NAME: `-o wide` has all columns",
    ],
    80: [
        "MODEL                 SIZE        QUANT   STATE   CONTEXT",
        "─" * 57,
        "Small-Words-80.gguf   845.3 KiB   Q8_0    ready   8192",
        "no room for NAME: `-o wide` has all columns",
    ],
    120: [
        "MODEL                  NAME                   SIZE        QUANT   STATE   CONTEXT",
        "─" * 81,
        "Small-Words-120.gguf   Small-Words-120.gguf   845.3 KiB   Q8_0    ready   8192",
    ],
}
"""What `llamesh pull` leaves on the screen, by the terminal's width."""
ANSWERED = {
    60: ["The mesh is up, and every token you read came from", "llama.cpp through Envoy."],
    80: [SENTENCE],
    120: [SENTENCE],
}
WIDTHS = pytest.mark.parametrize("columns", [60, 80, 120])


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A mesh of its own: the commands change it."""
    with running_mesh() as running:
        yield running


@pytest.fixture
def user(mesh: RunningMesh, tmp_path: Path) -> dict[str, str]:
    """The environment of a person on this machine who is logged in."""
    kept = {name: value for name, value in mesh.environment.items() if not name.startswith("LLAMESH_")}
    return {
        **kept,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "LLAMESH_HOME": str(mesh.home),
        "LLAMESH_TOKEN": mesh.token,
    }


def llamesh(user: dict[str, str], cwd: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What a command says on pipes."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "llamesh.cli.main", *arguments],
        env=user,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


def without_ids(lines: list[str]) -> list[str]:
    """The lines with ID in place of the beginnings of ids."""
    return [re.sub(r"\b[0-9a-f]{8}\b", "ID", line) for line in lines]


@WIDTHS
def test_a_file_is_pulled_in_a_terminal(mesh: RunningMesh, user: dict[str, str], tmp_path: Path, columns: int) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    sentence.write(folder / f"Small Words {columns}.gguf")
    with terminal(["pull", f"my models/Small Words {columns}.gguf"], columns, user, tmp_path) as shown:
        assert shown.end() == Exit.OK
    assert [line.strip() for line in shown.lines if line] == PULLED[columns]
    assert not handed_over_directory(mesh.home).exists()
    assert (folder / f"Small Words {columns}.gguf").stat().st_nlink == 1


@WIDTHS
def test_a_file_is_run_in_one_command(mesh: RunningMesh, user: dict[str, str], tmp_path: Path, columns: int) -> None:
    sentence.write(tmp_path / f"words{columns}.gguf")
    with terminal(["run", f"./words{columns}.gguf", "Hello!"], columns, user, tmp_path) as shown:
        assert shown.end() == Exit.OK
    first, *answer = without_ids(shown.lines)
    assert first == f"serving words{columns}.gguf; `llamesh stop ID` ends it"
    assert answer == ANSWERED[columns]
    again = llamesh(user, tmp_path, "run", f"words{columns}.gguf", "Hello!")
    assert (again.stdout, again.stderr) == (f"{SENTENCE}\n", "")
    servers = mesh.call("GET", "/status").json()["servers"]
    (mine,) = [server for server in servers if server["model_name"] == f"words{columns}.gguf"]
    mesh.call("DELETE", f"/stop/{mine['server_uuid']}")


def test_run_uses_the_model_and_server_that_are_already_there(
    mesh: RunningMesh, user: dict[str, str], tmp_path: Path
) -> None:
    sentence.write(tmp_path / "one.gguf")
    for _ in range(2):
        assert llamesh(user, tmp_path, "run", "./one.gguf", "Hello!").stdout == f"{SENTENCE}\n"
    servers = mesh.call("GET", "/status").json()["servers"]
    (mine,) = [server for server in servers if server["model_name"] == "one.gguf"]
    assert mine["spec"]["idle_sleep"] == "600s"
    by_id = llamesh(user, tmp_path, "run", mine["server_uuid"][:8], "Hello!")
    assert (by_id.stdout, by_id.returncode) == (f"{SENTENCE}\n", Exit.OK)
    mesh.call("POST", "/sleep", json={"server_uuid": mine["server_uuid"]})
    assert llamesh(user, tmp_path, "run", "one.gguf", "Hello!").stdout == f"{SENTENCE}\n"
    mesh.call("DELETE", f"/stop/{mine['server_uuid']}")


def test_a_changed_file_is_not_taken_for_the_first(mesh: RunningMesh, user: dict[str, str], tmp_path: Path) -> None:
    sentence.write(tmp_path / "changes.gguf")
    assert llamesh(user, tmp_path, "pull", "./changes.gguf").returncode == Exit.OK
    os.utime(tmp_path / "changes.gguf", (1, 1))
    changed = llamesh(user, tmp_path, "pull", "./changes.gguf")
    assert changed.returncode != Exit.OK
    assert (
        "changes.gguf was fetched from another file changes.gguf, or from this one before it changed" in changed.stderr
    )
    assert "`llamesh pull PATH --uuid changes.gguf --update`" in changed.stderr
    updated = llamesh(user, tmp_path, "pull", "./changes.gguf", "--update")
    assert updated.returncode == Exit.OK, updated.stderr
    assert llamesh(user, tmp_path, "pull", "./changes.gguf", "--name", "second.gguf").returncode == Exit.OK


@pytest.mark.parametrize("name", ["not there.gguf", ".", "text"])
def test_a_file_that_is_not_a_model_leaves_nothing(
    mesh: RunningMesh, user: dict[str, str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "text").write_text("some text")
    for command in ("pull", "run"):
        refused = llamesh(user, tmp_path, command, f"./{name}")
        assert refused.returncode in {Exit.USAGE, Exit.NOT_FOUND}
        assert f"./{name}" in refused.stderr.splitlines()[0]
    assert not handed_over_directory(mesh.home).exists()


def test_an_unknown_name_gets_the_nearest_as_a_hint(mesh: RunningMesh, user: dict[str, str], tmp_path: Path) -> None:
    sentence.write(tmp_path / "famous.gguf")
    assert llamesh(user, tmp_path, "pull", "./famous.gguf").returncode == Exit.OK
    refused = llamesh(user, tmp_path, "run", "famos", "Hello!")
    assert refused.returncode == Exit.NOT_FOUND
    said = refused.stderr.splitlines()
    # Between them it lists the models, those of other tests too.
    assert said[0] == "error: famos is no model of the mesh, no address and no file"
    assert said[-1] == "hint: did you mean famous.gguf?"


def test_downloads_are_listed(mesh: RunningMesh, user: dict[str, str], tmp_path: Path) -> None:
    sentence.write(tmp_path / "listed.gguf")
    llamesh(user, tmp_path, "pull", "./listed.gguf")
    for words in (["downloads"], ["downloads", "ls"], ["downloads", "list"]):
        header, *rows = llamesh(user, tmp_path, *words).stdout.splitlines()
        assert header.split()[:3] == ["MODEL", "STATE", "DONE"]
        assert any(row.split()[:2] == ["listed.gguf", "SUCCEEDED"] for row in rows)


@WIDTHS
def test_a_conversation_in_a_terminal(mesh: RunningMesh, user: dict[str, str], tmp_path: Path, columns: int) -> None:
    sentence.write(tmp_path / f"talk{columns}.gguf")
    assert llamesh(user, tmp_path, "run", f"./talk{columns}.gguf", "Hello!").returncode == Exit.OK
    with terminal(["run", f"talk{columns}.gguf"], columns, user, tmp_path) as shown:
        shown.until("Ctrl-D ends\n>")
        shown.type("Hello!\r")
        shown.until("Envoy.\n>")
        shown.type("/set verbose\rAgain!\r")
        shown.until("context used")
        shown.type("/bye\r")
        assert shown.end() == Exit.OK
    hint = f"talking to talk{columns}.gguf; /help lists commands, Ctrl-D ends"
    lines = shown.lines
    figures = lines.pop(-2)
    assert lines == [hint, "> Hello!", *ANSWERED[columns], "> /set verbose", "> Again!", *ANSWERED[columns], "> /bye"]
    assert re.fullmatch(r"15 tokens, [0-9.]+ tokens/s, context used [0-9]+ of 4096", figures)
