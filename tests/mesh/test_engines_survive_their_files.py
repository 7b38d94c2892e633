"""A full disk, and files of the run directory that vanish or are damaged, leave no engine stuck, unwatched or orphaned."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from controller.runtimes import EnginePhase, Liveness
from controller.runtimes.process import ProcessRuntime
from controller.runtimes.records import EngineRecords
from engine import sentence
from llamesh.kit.config import Settings
from llamesh.processes import ProcessId
from tests.mesh.engines import gone
from tests.mesh.runtimes import ENVIRONMENT, SERVER, ended, launch_spec, llama, only, opened, ready, until
from tests.mesh.vanishing import vanish
from tests.mounts import mounted

_NAMES = [
    f"{SERVER[:8]}-{a}{b}"
    for a in "0123456789abcdefghijklmnopqrstuvwxyz"
    for b in "0123456789abcdefghijklmnopqrstuvwxyz"
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence.write(tmp_path_factory.mktemp("model") / "sentence.gguf")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return made(tmp_path / "h")


def made(home: Path) -> Settings:
    return Settings(home=home, jwt_secret=SecretStr("0123456789abcdef" * 2), drain_seconds=2)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A real file system of 256 KiB. Its path is short: it has Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sd") as folder, mounted(Path(folder) / "disk", "256k") as disk:
        yield disk


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """A disk without a free byte for a `with` block."""
    filling = disk / "filling"
    with filling.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filling.unlink()


async def test_a_start_on_a_full_disk_is_a_failed_start_and_the_next_one_works(small_disk: Path, model: Path) -> None:
    settings = made(small_disk / "h")
    async with opened(settings) as runtime:
        with full(small_disk):
            await runtime.start(launch_spec(model))
            found = await ended(runtime)
        assert found.reason == "CannotStart"
        assert "No space left on device" in found.message
        runtime.forget(only(runtime).instance)
        assert runtime.engines(SERVER) == []
        await ready(runtime, model)


async def test_a_full_disk_does_not_keep_an_engine_from_ending(small_disk: Path, model: Path) -> None:
    async with opened(made(small_disk / "h")) as runtime:
        engine = await ready(runtime, model)
        with full(small_disk):
            runtime.stop(engine.instance, 2)
            assert (await ended(runtime)).requested


async def test_an_engine_that_starts_while_the_disk_fills_is_watched_all_the_same(
    settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between the start and the record of its process cannot be met from outside: the write itself fails."""

    def full_now(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with opened(settings) as runtime:
        monkeypatch.setattr(EngineRecords, "keep", full_now)
        engine = await ready(runtime, model)
        os.kill(int(engine.process), signal.SIGKILL)
        assert (await ended(runtime)).reason == "EngineKilled"


async def test_any_failure_inside_a_start_is_a_failed_start(
    settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(settings) as runtime:
        for name in _NAMES:
            (settings.run_dir / "engines" / f"{name}.json").touch()
        await runtime.start(launch_spec(model))
        found = await ended(runtime)
        assert found.reason == "CannotStart"
        assert "too many engines" in found.message
        runtime.forget(only(runtime).instance)
        for name in _NAMES:
            (settings.run_dir / "engines" / f"{name}.json").unlink()

        monkeypatch.setattr("asyncio.create_subprocess_exec", None)
        await runtime.start(launch_spec(model))
        assert (await ended(runtime)).reason == "CannotStart"


async def test_an_engine_that_is_told_to_end_while_it_is_being_started_ends(settings: Settings, model: Path) -> None:
    async with opened(settings) as runtime:
        await runtime.start(launch_spec(model))
        runtime.stop(only(runtime).instance, 60)
        assert (await ended(runtime)).requested
        assert EngineRecords(settings.run_dir / "engines").running() == {}


async def test_an_engine_whose_files_vanish_is_lost_and_its_record_is_written_again(
    settings: Settings, model: Path
) -> None:
    async with opened(settings) as runtime:
        engine = await ready(runtime, model)
        reader, writer = await asyncio.open_unix_connection(engine.address)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: engine\r\nContent-Length: 40\r\n\r\n")
        vanish(settings.run_dir / "engines")
        await until(lambda: only(runtime).liveness is Liveness.LOST)
        record = settings.run_dir / "engines" / f"{engine.instance}.json"
        await until(record.exists)
        load = await runtime.load(engine.instance)
        assert load is not None
        assert load.busy, "what it works on is not lost"
        # Its name is not given to another, though no file of the name is there.
        record.unlink()
        await runtime.start(launch_spec(model, 1))
        await until(lambda: {each.phase for each in runtime.engines(SERVER)} == {EnginePhase.READY})
        assert len({each.instance for each in runtime.engines(SERVER)}) == 2

        runtime.stop(engine.instance, 60)
        writer.write(b'{"prompt": "Hi", "max_tokens": 1}       ')
        assert b"200" in await reader.readline()
        writer.close()
        await until(lambda: any(each.exit and each.exit.requested for each in runtime.engines(SERVER)))


@pytest.mark.parametrize("damage", ["gone", "empty", "nonsense", "of another make", "of another name"])
async def test_an_engine_whose_record_is_lost_is_ended_by_the_next_controller(
    settings: Settings, model: Path, damage: str
) -> None:
    first = ProcessRuntime(settings, ENVIRONMENT)
    await first.open(lambda _: None, lambda _: None)
    engine = await ready(first, model)
    child = llama(engine)
    await first.close()
    record = settings.run_dir / "engines" / f"{engine.instance}.json"
    if damage == "gone":
        record.unlink()
    else:
        texts = {"empty": "", "nonsense": "\x00\xff{", "of another make": '{"instance": "0f0c6a0e-00"}'}
        record.write_text(texts.get(damage, record.read_text().replace("0f0c6a0e-00", "0f0c6a0e-01")))
    async with opened(settings) as second:
        assert SERVER not in second.servers()
        (orphan,) = (each for name in second.servers() for each in second.engines(name))
        assert orphan.phase is EnginePhase.STOPPING
        assert await gone(int(engine.process))
        assert await gone(child)
    assert list((settings.run_dir / "engines").iterdir()) == []


async def test_an_engine_whose_socket_vanished_before_the_controller_died_is_lost_and_not_starting(
    settings: Settings, model: Path
) -> None:
    first = ProcessRuntime(settings, ENVIRONMENT)
    await first.open(lambda _: None, lambda _: None)
    engine = await ready(first, model)
    vanish(settings.run_dir / "engines")
    await until((settings.run_dir / "engines" / f"{engine.instance}.json").exists)
    await first.close()
    async with opened(settings) as second:
        assert only(second).process == engine.process
        await until(lambda: only(second).liveness is Liveness.LOST)


async def test_an_engine_whose_socket_vanishes_before_it_is_ready_is_lost(settings: Settings, model: Path) -> None:
    async with opened(settings) as runtime:
        await runtime.start(launch_spec(model))
        address = Path(only(runtime).address)
        await until(address.exists)
        address.unlink()
        await until(lambda: only(runtime).liveness is Liveness.LOST)


async def test_a_starting_engine_is_not_lost_while_the_backlog_of_an_earlier_one_of_its_name_is_answered(
    settings: Settings, model: Path
) -> None:
    async with opened(settings) as runtime:
        address = settings.run_dir / "engines" / f"{_NAMES[0]}.sock"
        with socket.socket(socket.AF_UNIX) as earlier:
            earlier.bind(str(address))
            earlier.listen()
            address.unlink()
            engine = await ready(runtime, model)
        assert (engine.address, engine.liveness) == (str(address), Liveness.ALIVE)


async def test_an_engine_whose_record_names_no_process_is_found_by_its_command_line(
    settings: Settings, model: Path
) -> None:
    first = ProcessRuntime(settings, ENVIRONMENT)
    await first.open(lambda _: None, lambda _: None)
    engine = await ready(first, model)
    await first.close()
    record = settings.run_dir / "engines" / f"{engine.instance}.json"
    record.write_text(record.read_text().replace(f'"pid": {engine.process}', '"pid": 0'))
    async with opened(settings) as second:
        assert (only(second).process, only(second).phase) == (engine.process, EnginePhase.READY)
        assert ProcessId.of(int(engine.process)).alive
