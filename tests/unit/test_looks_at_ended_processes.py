"""Tests of a whole mesh look at processes and files that may be gone by then: such a look fails no test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.files import contents_below
from tests.mesh.running import until
from tests.processes import command_line, ended, kill_all, send_all


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_ended_after_it_was_listed_has_ended(sleeping: subprocess.Popen[bytes], reaped: bool) -> None:
    listed = psutil.Process(sleeping.pid)
    assert not ended(listed)
    assert command_line(listed) == ["sleep", "60"]
    sleeping.kill()
    if reaped:
        sleeping.wait()
    else:
        until(lambda: listed.status() == psutil.STATUS_ZOMBIE, 60, "its end")
    assert ended(listed)
    assert command_line(listed) == []
    send_all([listed], signal.SIGTERM)
    kill_all([listed])


def test_a_file_that_vanishes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").write_text("kept")
    monkeypatch.setattr(os, "walk", lambda _: [(str(tmp_path), [], ["journal", "kept"])])
    assert contents_below(tmp_path) == {tmp_path / "kept": b"kept"}
