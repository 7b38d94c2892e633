"""A terminal or pipe that is not UTF-8 shows escapes; the command does not fail."""

from __future__ import annotations

import os
import subprocess
import sys

import pexpect
import pytest

from llamesh.v1 import server_pb2
from tests.contract.fakes import FakeGateway
from tests.contract.patience import PATIENCE

pytestmark = pytest.mark.usefixtures("url")
COMMAND = ["-m", "llamesh.cli.main", "status"]


@pytest.fixture
def ascii_only(gateway: FakeGateway) -> dict[str, str]:
    gateway.servers = [server_pb2.Server(server_uuid="0f0c6a0e", model_name="modèle")]
    return {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


def test_a_pipe(ascii_only: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, *COMMAND], env=ascii_only, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert b"mod\\xe8le" in done.stdout


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal(ascii_only: dict[str, str], width: int) -> None:
    terminal = pexpect.spawn(
        sys.executable,
        COMMAND,
        env=ascii_only,  # type: ignore[arg-type]
        dimensions=(24, width),
        timeout=PATIENCE,
    )
    shown = terminal.read()
    terminal.close()
    assert terminal.exitstatus == 0, shown
    assert b"0f0c6a0e" in shown
    assert b"mod\\xe8le" in shown
