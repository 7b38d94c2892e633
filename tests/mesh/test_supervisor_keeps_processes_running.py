"""The supervisor with stand-in processes (labelled fakes: small programs that honour the lifeline as members of the mesh do)."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from llamesh.cli.mesh import leftovers, logfiles
from llamesh.cli.mesh.envoy import TETHER
from llamesh.cli.mesh.liveness import SILENT_PROBES, Answer
from llamesh.cli.mesh.supervisor import Component, Supervisor
from tests.processes import command_line

FAKE_MEMBER = """
import os, select, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, lambda *_: (print("ending", flush=True), sys.exit(0)))
print("serving", flush=True)
select.select([int(os.environ["LLAMESH_LIFELINE_FD"])], [], [])
os._exit(1)
"""
"""A fake member: serves nothing, ends when it is asked to and at the end of the lifeline."""

DEADLINE = 60.0


def member(name: str, stage: int = 0, code: str = FAKE_MEMBER, stop_seconds: float = 2.0, **extras: Any) -> Component:
    return Component(name, (sys.executable, "-S", "-c", code), stage, stop_seconds, **extras)


async def eventually(ask: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE
    while not (found := ask()):
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)
    return found


@asynccontextmanager
async def running(
    tmp_path: Path, *components: Component, patience: float = 20.0, housekeeping: float = 10.0
) -> AsyncIterator[tuple[Supervisor, list[str]]]:
    said: list[str] = []
    supervisor = Supervisor(components, tmp_path, tmp_path, said.append, os.environ, patience, housekeeping)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, said
    finally:
        supervisor.kill()
        await task


async def test_a_killed_member_is_started_again_with_a_message(tmp_path: Path) -> None:
    async with running(tmp_path, member("one"), member("two")) as (supervisor, said):
        before = await eventually(lambda: len(supervisor.running()) == 2 and supervisor.running())
        os.kill(before["one"], signal.SIGKILL)
        await eventually(lambda: supervisor.running().get("one") not in (None, before["one"]))
        assert supervisor.running()["two"] == before["two"]
        assert said == ["one was ended by SIGKILL; starting it again"]


async def test_a_component_that_may_not_start_as_it_is_configured_ends_all(tmp_path: Path) -> None:
    refusing = member("strict", code="import sys; print('strict: set the password'); sys.exit(2)")
    async with running(tmp_path, member("one"), refusing) as (supervisor, said):
        await eventually(lambda: supervisor.stopping and not supervisor.running())
        assert supervisor.refused == "strict: set the password"
        assert said == []


async def test_the_last_output_of_a_failed_component_is_shown(tmp_path: Path) -> None:
    failing = member("sad", code="import sys; print('no database'); sys.exit(3)")
    async with running(tmp_path, failing) as (_, said):
        await eventually(lambda: said)
        assert said[0] == "sad ended with exit code 3; starting it again\n    its last output: no database"


async def test_the_end_comes_in_stages_after_the_drain(tmp_path: Path) -> None:
    order: list[str] = []
    log = tmp_path / "order"

    async def drain() -> None:
        order.append("drain")
        assert len(supervisor.running()) == 3

    code = FAKE_MEMBER.replace('print("ending", flush=True)', f"open({str(log)!r}, 'a').write(sys.argv[1])")
    components = [
        Component(name, (sys.executable, "-S", "-c", code, name), stage, 2.0, drain if stage == 0 else None)
        for stage, name in enumerate("abc")
    ]
    async with running(tmp_path, *components) as (supervisor, said):
        await eventually(lambda: [(tmp_path / f"{name}.log").exists() for name in "abc"] == [True] * 3)
        await eventually(lambda: all("serving" in (tmp_path / f"{name}.log").read_text() for name in "abc"))
        supervisor.stop()
        await eventually(lambda: not supervisor.running())
    assert order == ["drain"]
    assert log.read_text() == "abc"
    assert said == []


STUBBORN = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


async def test_a_second_stop_changes_nothing_and_a_kill_ends_it(tmp_path: Path) -> None:
    component = member("stubborn", code=STUBBORN, stop_seconds=60.0)
    async with running(tmp_path, component) as (supervisor, _):
        await eventually(lambda: "up" in _text(tmp_path / "stubborn.log"))
        for _ in range(3):
            supervisor.stop()
            await asyncio.sleep(0.05)
        assert supervisor.running()
        supervisor.kill()
        await eventually(lambda: not supervisor.running())
        assert supervisor.killed


async def test_a_component_that_ignores_the_end_is_killed_after_its_time(tmp_path: Path) -> None:
    component = member("stubborn", code=STUBBORN, stop_seconds=0.2)
    async with running(tmp_path, component) as (supervisor, said):
        await eventually(lambda: "up" in _text(tmp_path / "stubborn.log"))
        supervisor.stop()
        await eventually(lambda: not supervisor.running())
        assert said == ["stubborn did not end within 0.2 s; it is killed"]


class Answers:
    """A fake probe: answers while `alive`."""

    def __init__(self) -> None:
        self.alive = True
        self.silence = Answer.NONE
        self.failure: OSError | None = None
        self.calls = 0

    async def __call__(self, seconds: float) -> Answer:
        self.calls += 1
        if self.failure:
            raise self.failure
        return Answer.GIVEN if self.alive else self.silence


async def test_a_member_that_answers_no_probe_is_killed_started_again_and_counted(tmp_path: Path) -> None:
    probe = Answers()
    async with running(tmp_path, member("one", probe=probe), member("two"), patience=0.05) as (supervisor, said):
        before = await eventually(lambda: probe.calls > 1 and supervisor.running().copy())
        probe.alive = False
        await eventually(lambda: said)
        probe.alive = True
        await eventually(lambda: supervisor.running().get("one") not in (None, before["one"]))
        assert supervisor.running()["two"] == before["two"]
        assert said == [
            f"one left {SILENT_PROBES} liveness probes in a row unanswered; it is killed",
            "one was ended by SIGKILL; starting it again",
        ]
        life = await eventually(lambda: leftovers.lives(tmp_path).get("one"))
        assert (life.restarts, life.silences) == (1, 1)


async def test_a_member_is_probed_often_until_it_listens(tmp_path: Path) -> None:
    # With the interval of a member that answers (1,000 s here), what serves for a moment and then hangs would never be seen to serve.
    probe = Answers()
    probe.alive, probe.silence = False, Answer.NOBODY
    async with running(tmp_path, member("one", probe=probe), patience=5000.0):
        await eventually(lambda: probe.calls > 2)
        probe.alive = True
        calls = probe.calls
        await eventually(lambda: probe.calls > calls)


async def test_a_probe_that_cannot_be_made_says_nothing_about_the_process(tmp_path: Path) -> None:
    probe = Answers()
    async with running(tmp_path, member("one", probe=probe), patience=0.05) as (supervisor, said):
        before = await eventually(lambda: probe.calls > 1 and supervisor.running().copy())
        probe.failure = OSError(errno.EMFILE, "Too many open files")
        await eventually(lambda: said)
        assert said == ["liveness probe of one failed and is tried again: [Errno 24] Too many open files"]
        assert supervisor.running() == before


async def test_nothing_is_killed_for_its_silence_while_it_ends(tmp_path: Path) -> None:
    probe = Answers()
    slow = FAKE_MEMBER.replace("sys.exit(0)", "(time.sleep(0.5), sys.exit(0))").replace("import os", "import time, os")
    async with running(tmp_path, member("one", code=slow, probe=probe), patience=0.05) as (supervisor, said):
        await eventually(lambda: probe.calls > 1 and "serving" in _text(tmp_path / "one.log"))
        supervisor.stop()
        probe.alive = False
        await eventually(lambda: not supervisor.running())
        assert said == []


async def test_a_full_disk_costs_logs_and_records_but_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        for function in ("record", "open_log", "rotate"):
            patch.setattr(leftovers if function == "record" else logfiles, function, fails)
        async with running(tmp_path, member("one"), housekeeping=0.01) as (supervisor, said):
            before = await eventually(lambda: supervisor.running().copy())
            await eventually(lambda: len(said) == 3)
            os.kill(before["one"], signal.SIGKILL)
            await eventually(lambda: supervisor.running().get("one") not in (None, before["one"]))
            assert all("No space left on device" in words for words in said[:3]), said
            patch.undo()
            # Housekeeping goes on and writes what could not be written.
            life = await eventually(lambda: leftovers.lives(tmp_path).get("one"))
            assert life.process.pid == supervisor.running()["one"]


SUPERVISOR = f"""
import asyncio, os, sys
from pathlib import Path
from typing import Any
from llamesh.cli.mesh.supervisor import Component, Supervisor
member = (sys.executable, "-S", "-c", {FAKE_MEMBER!r})
tethered = (sys.executable, "-I", "-S", {str(TETHER)!r}, str(os.getpid()), "/bin/sleep", "1000")
components = [Component("member", member, 0, 1.0), Component("tethered", tethered, 0, 1.0)]
supervisor = Supervisor(components, Path(sys.argv[1]), Path(sys.argv[1]), print, os.environ, 20.0)
asyncio.run(supervisor.run())
"""


@pytest.fixture
def supervisor_process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SUPERVISOR), str(tmp_path)])
    yield process
    process.kill()
    process.wait()


async def test_nothing_outlives_a_supervisor_that_is_killed(
    tmp_path: Path, supervisor_process: subprocess.Popen[bytes]
) -> None:
    parent = psutil.Process(supervisor_process.pid)
    await eventually(lambda: "serving" in _text(tmp_path / "member.log"))
    await eventually(lambda: any("/bin/sleep" in command_line(child)[:1] for child in parent.children()))
    children = parent.children(recursive=True)
    assert len(children) == 2
    supervisor_process.kill()
    supervisor_process.wait()
    _, left = psutil.wait_procs(children, timeout=DEADLINE)
    assert left == []


async def test_a_new_start_ends_only_recorded_processes(tmp_path: Path) -> None:
    ours = subprocess.Popen(["/bin/sleep", "1000"])
    other = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        (tmp_path / "engines").mkdir()
        (tmp_path / "gateway.sock").touch()
        ours_id = leftovers.ProcessId.of(ours.pid)
        reused = leftovers.ProcessId(other.pid, "before")
        leftovers.record(tmp_path, {"ours": leftovers.Life(ours_id), "other": leftovers.Life(reused)})
        reaper = asyncio.create_task(asyncio.to_thread(ours.wait))
        assert await asyncio.to_thread(leftovers.clear, tmp_path, tmp_path, 0.1) == 1
        await reaper
        assert other.poll() is None
        assert not (tmp_path / "gateway.sock").exists()
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
