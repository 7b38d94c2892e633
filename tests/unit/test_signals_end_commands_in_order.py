"""SIGTERM and SIGHUP end a command as Ctrl-C does: nothing unfinished is left, and its parent sees the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamesh import locks
from tests.mesh.running import until
from tests.unit.halfway import halfway

SECONDS = 60
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]

COMMAND = """
import sys, time
from llamesh.cli import main
{prepare}

def waits(*_, **__):
    print("waits", flush=True)
    while True:
        time.sleep(0.01)

{place} = waits
main.main()
"""
FETCH = """
import sys, time
from engine import demo
from llamesh.shutdown import unwound

def waits(directory):
    (directory / "part").touch()
    print("waits", flush=True)
    while True:
        time.sleep(0.01)

demo._download = waits
sys.exit(unwound(demo.main))
"""
MORE_SIGNALS = """
import os, signal, sys, time
from llamesh.shutdown import unwound

def program():
    try:
        print("waits", flush=True)
        while True:
            time.sleep(0.01)
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        print("the block has ended", flush=True)

sys.exit(unwound(program))
"""
IGNORED = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from llamesh.shutdown import unwound

def program():
    print("waits", flush=True)
    print(sys.stdin.readline())
    return 7

sys.exit(unwound(program))
"""


def ended_by(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """End a process by a signal, and return what it said."""
    process.send_signal(number)
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    return said


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "secrets").mkdir(parents=True)
    (tmp_path / "home" / "secrets" / "jwt_secret").write_text("s" * 40)
    return tmp_path / "home"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_backup_leaves_nothing(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    code = COMMAND.format(prepare="from llamesh.cli.mesh import tables", place="tables.dump")
    with halfway(code, "backup", str(tmp_path / "b"), LLAMESH_HOME=str(home)) as process:
        assert (tmp_path / ".b.unfinished").is_dir()
        assert ended_by(process, number) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_model_that_is_copied_to_the_mesh_leaves_nothing(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    prepare = """
from pathlib import Path
from llamesh.cli import local_files
from llamesh.client import handed_folder

def links(path, target):
    target.touch()
    waits()

local_files.home_for = lambda *_: Path(sys.argv[1])

def copy():
    with local_files.handed_over(Path(sys.argv[2]), None, purpose="x"):
        raise AssertionError
main.run = lambda _: copy()
"""
    code = COMMAND.format(prepare=prepare, place="handed_folder._linked = links; main.unused")
    with halfway(code, str(home), str(tmp_path / "m.gguf")) as process:
        assert list((home / "import" / "handed-over").rglob("*.gguf"))
        process.send_signal(number)
        process.communicate(timeout=SECONDS)
    assert not list((home / "import").rglob("*.gguf"))


@pytest.mark.parametrize("number", SIGNALS[:2])
def test_a_download_of_a_program_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with halfway(FETCH, str(tmp_path)) as process:
        assert list(tmp_path.glob(".fetch-*/part"))
        ended_by(process, number)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", SIGNALS[:2])
def test_a_module_that_is_asked_ends_with_the_programs_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    """As pg_restore, which would go on and fill the database."""
    lock = tmp_path / "lock"
    program = f"import fcntl, sys; f = open({str(lock)!r}, 'w'); fcntl.flock(f, 2); print('waits', flush=True); sys.stdin.read()"
    (tmp_path / "starts.py").write_text(
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {program!r}], stdin=subprocess.PIPE).wait()\n"
    )
    prepare = f"""
import os
from llamesh import locks
from llamesh.cli.mesh import members

def asks():
    members.ask("starts", environment=dict(os.environ, PYTHONPATH={str(tmp_path)!r}), seconds=1e6)

main.run = lambda _: asks()
"""
    code = COMMAND.format(prepare=prepare, place="main.unused")
    with subprocess.Popen([sys.executable, "-c", code], env={"PATH": "/usr/bin:/bin"}) as process:
        until(lambda: is_locked(lock), SECONDS, "the program that was started")
        process.send_signal(number)
        assert process.wait(SECONDS) == -number
    until(lambda: not is_locked(lock), SECONDS, "the end of the program")


def is_locked(path: Path) -> bool:
    descriptor = locks.open_file(path)
    try:
        return locks.is_held(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("number", SIGNALS[:2])
def test_more_signals_do_not_interrupt_the_end(number: signal.Signals) -> None:
    with halfway(MORE_SIGNALS) as process:
        process.send_signal(number)
        said, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (-number, "the block has ended\n")


def test_a_program_that_ignores_the_end_of_its_terminal_goes_on() -> None:
    with halfway(IGNORED) as process:
        process.send_signal(signal.SIGHUP)
        said, _ = process.communicate("goes on\n", timeout=SECONDS)
    assert (process.returncode, said.strip()) == (7, "goes on")
