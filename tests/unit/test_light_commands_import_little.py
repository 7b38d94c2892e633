"""Help of a command that only asks a mesh shows before anything heavy is imported: clients, TLS, subprocesses, archives."""

from __future__ import annotations

import json
import subprocess
import sys

from llamesh.cli.main import COMMANDS

HEAVY = (
    *("asyncio", "grpc", "google.protobuf", "http.client", "logging", "prompt_toolkit", "shutil", "socket", "ssl"),
    *("subprocess", "tempfile", "yaml"),
)
MACHINE = {"up", "down", "backup", "restore"}
"""Commands that work on the mesh of this machine: they start processes and write archives."""
FROM_THE_CONTRACT = {"serve", "fit", "set"}
"""Commands whose options are fields of the contract: they read its descriptors."""

SHOW_HELP = """
import contextlib, io, json, sys
from llamesh.cli.main import run

commands, heavy = json.loads(sys.argv[1])
found = {}
for command in ([], *([name] for name in commands)):
    with contextlib.redirect_stdout(io.StringIO()):
        assert run([*command, "--help"]) == 0
    found[" ".join(command)] = [name for name in heavy if name in sys.modules]
print(json.dumps(found))
"""


def imported_by_help_of(commands: list[str]) -> dict[str, list[str]]:
    """The heavy modules that a fresh process has after the help of each command, one command after another."""
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_HELP, json.dumps([commands, HEAVY])], capture_output=True, text=True, check=True
    )
    found: dict[str, list[str]] = json.loads(shown.stdout)
    return found


def test_help_of_light_commands_imports_nothing_heavy() -> None:
    names = [name for commands in COMMANDS.values() for name in commands]
    light = [name for name in names if name not in MACHINE | FROM_THE_CONTRACT]
    assert imported_by_help_of(light) == {name: [] for name in ("", *light)}
