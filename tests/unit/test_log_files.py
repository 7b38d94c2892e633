"""Logs are put aside when they are full, in place: the component goes on writing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from llamesh.cli.mesh.logfiles import KEPT, last_lines, open_log, path_of, rotate


def test_a_full_log_is_put_aside_and_the_writer_goes_on(tmp_path: Path) -> None:
    log = open_log(tmp_path, "gateway")
    for number in range(KEPT + 2):
        os.write(log, f"life {number}\n".encode() * 10)
        assert rotate(tmp_path, "gateway", largest=50)
    os.write(log, b"now\n")
    os.close(log)
    assert last_lines(path_of(tmp_path, "gateway"), 10) == ["now"]
    assert last_lines(tmp_path / "gateway.log.1", 1) == [f"life {KEPT + 1}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gateway.log",
        *(f"gateway.log.{number}" for number in range(1, KEPT + 1)),
    ]


def test_a_log_that_is_not_full_stays(tmp_path: Path) -> None:
    os.close(open_log(tmp_path, "gateway"))
    assert not rotate(tmp_path, "gateway", largest=1)
    assert not rotate(tmp_path, "none", largest=1)


def test_logs_are_private(tmp_path: Path) -> None:
    os.close(open_log(tmp_path, "gateway"))
    assert path_of(tmp_path, "gateway").stat().st_mode & 0o077 == 0


def test_the_last_lines_of_no_log_are_none(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none", 3) == []


def test_on_a_full_disk_old_logs_are_given_up_and_the_full_one_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path, "gateway")
    for number in range(KEPT):
        os.write(log, f"life {number}\n".encode() * 10)
        assert rotate(tmp_path, "gateway", largest=50)
    os.write(log, b"last\n" * 10)
    copies = list(tmp_path.glob("gateway.log.*"))
    assert len(copies) == KEPT
    tried = []

    def full(source: Path, target: Path) -> None:
        tried.append(len(list(tmp_path.glob("gateway.log.?"))))
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        assert rotate(tmp_path, "gateway", largest=50)
    assert tried == [3, 2, 1, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.log"]
    os.write(log, b"goes on\n")
    os.close(log)
    assert last_lines(path_of(tmp_path, "gateway"), 10) == ["goes on"]


def test_a_log_that_cannot_be_copied_for_another_reason_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path, "gateway")
    os.write(log, b"words\n" * 10)
    os.close(log)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shutil, "copyfile", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        rotate(tmp_path, "gateway", largest=50)
    assert len(last_lines(path_of(tmp_path, "gateway"), 100)) == 10


def test_a_log_that_cannot_be_read_has_no_last_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path, 3) == []
