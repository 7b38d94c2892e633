"""At most one process of a member for each home; the refusal names the holder, and a lock never outlives its holder."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamesh.kit import ownership
from llamesh.kit.ownership import HeldError, exclusive, lock_path, owner_of

ENDING = 20.0


async def test_a_second_holder_is_refused_with_the_pid_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "HELD_SECONDS", 0.1)
    async with exclusive(tmp_path, "gateway", ENDING):
        with pytest.raises(HeldError, match=f"process {os.getpid()} is already the gateway of this home") as refused:
            async with exclusive(tmp_path, "gateway", ENDING):
                pass
        assert refused.value.holder == os.getpid()
        async with exclusive(tmp_path, "contract", ENDING):
            pass
    async with exclusive(tmp_path, "gateway", ENDING):
        pass
    assert not lock_path(tmp_path, "gateway").exists()


async def test_a_holder_that_is_ending_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "HELD_SECONDS", 0.0)
    entered = asyncio.Event()

    async def wait_for_it() -> None:
        async with exclusive(tmp_path, "gateway", ENDING):
            entered.set()

    async with exclusive(tmp_path, "gateway", ENDING) as lock:
        lock.say_ending()
        waiting = asyncio.create_task(wait_for_it())
        await asyncio.sleep(4 * ownership._POLL_SECONDS)
        assert not entered.is_set()
        assert not waiting.done()
    await asyncio.wait_for(waiting, 10)
    assert entered.is_set()


async def test_the_lock_is_never_held_by_two_of_many_processes(tmp_path: Path) -> None:
    """Each holder removes the file: whoever had it open must not take the removed file for the lock."""
    inside = 0
    most = 0

    async def pass_through() -> None:
        nonlocal inside, most
        for _ in range(10):
            async with exclusive(tmp_path, "gateway", ENDING) as lock:
                lock.say_ending()
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    await asyncio.gather(*(pass_through() for _ in range(5)))
    assert most == 1


async def test_a_killed_holder_gives_it_back(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; from llamesh.kit.ownership import exclusive\n"
        "async def main():\n"
        "    async with exclusive(Path(sys.argv[1]), 'gateway', 1):\n"
        "        print('held', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    async with exclusive(tmp_path, "gateway", ENDING):
        pass


def test_an_owner_is_the_same_after_a_restart_and_another_for_a_copied_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = owner_of(home, "download")
    assert owner_of(home, "download") == first
    assert owner_of(home, "controller").id != first.id
    assert str(os.getpid()) in first.words
    assert str(home) in first.words
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    assert owner_of(copy, "download").id != first.id
    assert sorted(path.name for path in home.iterdir()) == ["home-id"]


def test_a_full_disk_costs_a_known_owner_nothing_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = owner_of(tmp_path, "controller")

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert owner_of(tmp_path, "controller").id == before.id
    new = tmp_path / "new"
    with pytest.raises(OSError, match="No space left"):
        owner_of(new, "controller")
    assert list(new.iterdir()) == []
