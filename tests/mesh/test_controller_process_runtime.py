"""Engines as processes: found again after the controller died at any moment, ended for sure, nothing left on disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from controller.runtimes import EngineExit, EnginePhase, Liveness
from controller.runtimes.enginelog import EngineLogs
from controller.runtimes.process import ProcessRuntime
from controller.runtimes.records import EngineRecords, new_record
from engine import sentence
from llamesh.kit.config import Settings
from llamesh.processes import ProcessId, command_lines
from tests.mesh.engines import DEADLINE
from tests.mesh.runtimes import ENVIRONMENT, SERVER, ended, idle, launch_spec, llama, only, ready, stopped, until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence.write(tmp_path_factory.mktemp("model") / "sentence.gguf")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "h", jwt_secret=SecretStr("0123456789abcdef" * 2), drain_seconds=2)


@pytest.fixture
async def runtime(settings: Settings) -> AsyncIterator[ProcessRuntime]:
    made = await opened(settings)
    yield made
    await made.stop_all(1)
    await made.close()


async def opened(settings: Settings) -> ProcessRuntime:
    made = ProcessRuntime(settings, ENVIRONMENT)
    await made.open(lambda _: None, lambda _: None)
    return made


def files(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.run_dir / "engines").iterdir())


async def test_an_engine_lives_from_start_to_a_clean_end(
    runtime: ProcessRuntime, settings: Settings, model: Path
) -> None:
    engine = await ready(runtime, model)
    assert engine.address == str(settings.run_dir / "engines" / "0f0c6a0e-00.sock")
    assert len(engine.address) <= 107
    await idle(runtime, engine)
    runtime.stop(engine.instance, 2)
    runtime.stop(engine.instance, 2)
    assert only(runtime).phase is EnginePhase.STOPPING
    assert (await ended(runtime)).requested
    runtime.forget(engine.instance)
    assert runtime.engines(SERVER) == []
    assert files(settings) == []


async def test_an_engine_sees_none_of_our_secrets(runtime: ProcessRuntime, model: Path) -> None:
    engine = await ready(runtime, model)
    seen = Path(f"/proc/{engine.process}/environ").read_text()
    assert "JWT_SECRET" not in seen
    assert "MINIO_SECRET_KEY" not in seen
    assert "LLAMA_SERVER_BIN=embedded" in seen


async def test_a_killed_engine_is_said_to_be_killed(runtime: ProcessRuntime, model: Path) -> None:
    engine = await ready(runtime, model)
    os.kill(int(engine.process), signal.SIGKILL)
    assert await ended(runtime) == EngineExit("EngineKilled", "the engine was ended by SIGKILL", requested=False)
    assert not Path(engine.address).exists()


async def test_a_broken_model_is_said_to_be_broken(runtime: ProcessRuntime, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    await runtime.start(launch_spec(broken))
    found = await ended(runtime)
    assert (found.reason, found.requested) == ("BadModel", False)
    assert "not a GGUF file" in found.message


async def test_an_engine_that_does_not_listen_is_ended_by_force(runtime: ProcessRuntime, model: Path) -> None:
    engine = await ready(runtime, model)
    os.kill(int(engine.process), signal.SIGSTOP)
    runtime.stop(engine.instance, 0)
    assert (await ended(runtime)).requested


async def test_engines_of_one_server_may_retire_at_the_same_time(settings: Settings, model: Path) -> None:
    # They wait for their clients for as long as the test takes.
    runtime = await opened(settings.model_copy(update={"drain_seconds": DEADLINE}))
    for replica in range(3):
        await runtime.start(launch_spec(model, replica))
    await until(lambda: all(engine.phase is EnginePhase.READY for engine in runtime.engines(SERVER)))
    # The engines must know it themselves: one that is told to end before it was ready has nothing to wait for.
    states = [settings.run_dir / "engines" / f"{engine.instance}.state" for engine in runtime.engines(SERVER)]
    await until(lambda: all(json.loads(state.read_text())["phase"] == "ready" for state in states))
    busy = [await asyncio.open_unix_connection(engine.address) for engine in runtime.engines(SERVER)]
    for engine in runtime.engines(SERVER):
        runtime.stop(engine.instance, DEADLINE)
    # Held open by a client each: every engine has hidden its socket under a name of its own.
    await until(lambda: len([name for name in files(settings) if name.startswith("~")]) == 3)
    for _, writer in busy:
        writer.close()
    await until(lambda: all(engine.phase is EnginePhase.ENDED for engine in runtime.engines(SERVER)))
    for engine in runtime.engines(SERVER):
        runtime.forget(engine.instance)
    await runtime.close()
    assert files(settings) == []


async def test_a_new_runtime_adopts_running_engines(settings: Settings, model: Path) -> None:
    first = await opened(settings)
    before = await ready(first, model)
    await first.close()
    second = await opened(settings)
    try:
        after = only(second)
        assert (after.phase, after.process, after.spec_hash) == (EnginePhase.READY, before.process, "hash")
        os.kill(int(after.process), signal.SIGKILL)
        assert not (await ended(second)).requested
    finally:
        await second.stop_all(1)
        await second.close()
    assert files(settings) == []


async def test_an_engine_that_hangs_while_the_controller_is_replaced_is_suspect_and_not_starting(
    settings: Settings, model: Path
) -> None:
    first = await opened(settings)
    engine = await ready(first, model)
    # Its supervising process learns of it by a question of its own.
    await until(lambda: EngineRecords(settings.run_dir / "engines").was_ready(engine.instance))
    with stopped(llama(engine)):
        await first.close()
        second = await opened(settings)
        try:
            found = only(second)
            assert (found.phase, found.liveness) == (EnginePhase.READY, Liveness.SUSPECT)
        except BaseException:
            await second.stop_all(0)
            raise
    try:
        await until(lambda: only(second).liveness is Liveness.ALIVE)
        assert only(second).process == engine.process
    finally:
        await second.stop_all(1)
        await second.close()


async def test_an_engine_that_was_told_to_end_still_ends_after_the_controller_died(
    settings: Settings, model: Path
) -> None:
    first = await opened(settings)
    engine = await ready(first, model)
    os.kill(int(engine.process), signal.SIGSTOP)
    first.stop(engine.instance, 60)
    await first.close()
    second = await opened(settings)
    assert only(second).phase is EnginePhase.STOPPING
    assert (await ended(second)).requested
    await second.close()


async def test_an_engine_started_just_before_the_controller_died_is_found(settings: Settings, model: Path) -> None:
    first = await opened(settings)
    engine = await ready(first, model)
    await first.close()
    record = settings.run_dir / "engines" / f"{engine.instance}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"pid": 0, "started": ""}))
    second = await opened(settings)
    assert only(second).process == engine.process
    await second.stop_all(1)
    await second.close()


async def test_the_files_of_a_dead_engine_are_removed(settings: Settings, model: Path) -> None:
    first = await opened(settings)
    engine = await ready(first, model)
    await first.close()
    os.kill(int(engine.process), signal.SIGKILL)
    await until(lambda: not ProcessId.of(int(engine.process)).alive)
    second = await opened(settings)
    assert second.servers() == set()
    assert files(settings) == []
    await second.close()


async def test_a_number_that_belongs_to_somebody_else_now_is_left_alone(settings: Settings) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        first = await opened(settings)
        await first.close()
        records = EngineRecords(settings.run_dir / "engines")
        record = new_record("0f0c6a0e-00", SERVER, 0, "hash")
        records.write(type(record)(**{**_fields(record), "pid": other.pid, "started": "12345"}))
        second = await opened(settings)
        assert second.servers() == set()
        await second.stop_all(0)
        await second.close()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}  # type: ignore[attr-defined]


async def test_damaged_records_are_no_obstacle(settings: Settings) -> None:
    folder = settings.run_dir / "engines"
    folder.mkdir(parents=True)
    for number, text in enumerate(["", "{", "[]", '{"instance": "x"}', "null", '{"pid": 1, "other": 2}']):
        (folder / f"{number}.json").write_text(text)
    runtime = await opened(settings)
    assert runtime.servers() == set()
    await runtime.close()


async def test_twenty_engines_have_names_of_their_own(tmp_path: Path) -> None:
    records = EngineRecords(tmp_path)
    names = [
        records.write(new_record(records.free_instance(SERVER), SERVER, number, "h")).instance for number in range(40)
    ]
    assert len(set(names)) == 40
    assert {len(name) for name in names} == {11}
    records.remove(names[3])
    assert records.free_instance(SERVER) == names[3]


def started_with(argument: str) -> list[ProcessId]:
    return [process for process, words in command_lines() if argument in words]


def test_a_process_is_told_by_its_argument_and_its_start(tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", marker])
    try:
        deadline = time.monotonic() + DEADLINE
        while not (listed := started_with(marker)) and time.monotonic() < deadline:
            time.sleep(0.01)
        (found,) = listed
        assert found == ProcessId.of(process.pid)
        assert found.alive
        assert not ProcessId(process.pid, "1").alive
    finally:
        process.kill()
        process.wait()
    assert not found.alive
    assert started_with(marker) == []


async def test_a_log_is_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    logs = EngineLogs(tmp_path, max_bytes=2000)
    writer = logs.open(SERVER, 0)
    for number in range(1000):
        os.write(writer, f"line {number}\n".encode())
    logs.trim()
    os.write(writer, b"after\n")
    os.close(writer)
    assert (tmp_path / f"{SERVER}-0.log").stat().st_size < 1100
    (batch,) = [lines async for lines in logs.read(SERVER, 0, 3, follow=False)]
    assert list(batch) == ["line 998", "line 999", "after"]
    assert [lines async for lines in logs.read(SERVER, 7, 3, follow=False)] == []


async def test_a_log_is_followed_line_by_line(tmp_path: Path) -> None:
    logs = EngineLogs(tmp_path)
    writer = logs.open(SERVER, 0)
    os.write(writer, b"one\ntwo\nthr")
    following = logs.read(SERVER, 0, 1, follow=True)
    assert list(await anext(following)) == ["two"]
    os.write(writer, b"ee\nfour\n")
    assert list(await asyncio.wait_for(anext(following), DEADLINE)) == ["three", "four"]
    await following.aclose()  # type: ignore[attr-defined]
    os.close(writer)
    logs.drop(SERVER)
    assert list(tmp_path.iterdir()) == []


async def test_a_log_that_cannot_be_shortened_does_not_keep_the_others_long(tmp_path: Path) -> None:
    # A directory of the name: even root cannot write into it.
    (tmp_path / "a.log").mkdir()
    for number in range(200):
        (tmp_path / "a.log" / f"something to make it long {number}").touch()
    (tmp_path / "b.log").write_bytes(b"line\n" * 100_000)
    logs = EngineLogs(tmp_path, max_bytes=(tmp_path / "a.log").stat().st_size - 1)
    with pytest.raises(IsADirectoryError):
        logs.trim()
    assert (tmp_path / "b.log").stat().st_size < 500_000


async def test_a_line_without_an_end_is_followed_in_bounded_pieces(tmp_path: Path) -> None:
    logs = EngineLogs(tmp_path)
    writer = logs.open(SERVER, 0)
    following = logs.read(SERVER, 0, 1, follow=True)
    os.write(writer, b"first\n")
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    os.write(writer, b"x" * (5 << 20))
    seen = [await asyncio.wait_for(first, DEADLINE)]
    while sum(len(line) for batch in seen for line in batch) < 4 << 20:
        seen.append(await asyncio.wait_for(anext(following), DEADLINE))
    assert max(len(line) for batch in seen for line in batch) <= 2 << 20
    await following.aclose()  # type: ignore[attr-defined]
    os.close(writer)
