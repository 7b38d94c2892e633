"""The units in deploy/ are valid, and agree with what `llamesh up` does."""

from __future__ import annotations

import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.mesh.components import components
from llamesh.kit.config import Settings
from tests.unit.test_start_names_what_prevents_it import settings

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
UNIT = DEPLOY / "systemd" / "llamesh.service"
PLIST = DEPLOY / "launchd" / "llamesh.plist"


def directives() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def longest_stop(home: Path) -> float:
    """Seconds that an orderly end may take with the default settings."""
    from dataclasses import replace

    drain = Settings().drain_seconds
    found = components(replace(settings(home), drain_seconds=drain))
    stages = {item.stage: item.stop_seconds + (drain if item.drain else 0) for item in found}
    return sum(stages.values())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # It must find the program and the user.
    adapted = UNIT.read_text().replace("/opt/llamesh/bin/llamesh", sys.executable).replace("User=llamesh", "User=root")
    (tmp_path / UNIT.name).write_text(adapted)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", tmp_path / UNIT.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_unit_fits_the_supervisor(tmp_path: Path) -> None:
    found = directives()
    assert found["Type"] == "notify"
    assert int(found["TimeoutStopSec"]) > longest_stop(tmp_path)
    assert found["RestartPreventExitStatus"] == str(int(Exit.USAGE))
    assert found["ExecStart"].endswith("/llamesh up")


def test_the_property_list_fits_the_supervisor(tmp_path: Path) -> None:
    found = plistlib.loads(PLIST.read_bytes())
    assert found["ProgramArguments"][1:] == ["up"]
    assert found["ExitTimeOut"] > longest_stop(tmp_path)
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert set(found["EnvironmentVariables"]) == {"LLAMESH_HOME", "PATH"}
