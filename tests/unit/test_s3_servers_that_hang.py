"""A server that accepts connections and answers nothing fails every call in bounded time; its check waits for no other call."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamesh.kit.objects import StoreUnavailableError, object_key, s3_clients
from llamesh.kit.objects.s3 import S3Store
from tests.unit.fake_s3 import FakeS3, fake_s3

KEY = object_key("models", "a" * 64, ".gguf")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"PROBE": 0.2, "SILENCE": 0.5, "LONG": 30.0}.items():
        monkeypatch.setattr(s3_clients, f"{name}_SECONDS", seconds)


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a server like one that was stopped with SIGSTOP: the kernel takes connections for it."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


def store_at(s3: FakeS3, address: str, folder: Path) -> S3Store:
    return S3Store(s3.place().model_copy(update={"endpoint": address}), folder)


async def test_a_check_fails_soon(limits: None, s3: FakeS3, hanging: str, tmp_path: Path) -> None:
    store = store_at(s3, hanging, tmp_path)
    began = time.monotonic()
    for check in (store.check, store.prepare):
        with pytest.raises(StoreUnavailableError, match="does not answer in time"):
            await check()
    assert time.monotonic() - began < 5
    await store.close()


async def test_a_check_waits_for_no_other_call(limits: None, s3: FakeS3, hanging: str, tmp_path: Path) -> None:
    store = store_at(s3, hanging, tmp_path)
    release = threading.Event()
    others = [asyncio.ensure_future(store.run(release.wait)) for _ in range(64)]
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError):
            await store.check()
    release.set()
    await asyncio.gather(*others)
    await store.close()


async def test_a_read_gives_up_after_silence(limits: None, s3: FakeS3, hanging: str, tmp_path: Path) -> None:
    store = store_at(s3, hanging, tmp_path)
    async with asyncio.timeout(10):
        with pytest.raises(StoreUnavailableError, match="does not answer in time"):
            await store.stat(KEY)
    await store.close()


async def test_a_copy_and_a_completion_may_take_longer(limits: None, s3: FakeS3, tmp_path: Path) -> None:
    store = S3Store(s3.place(), tmp_path)
    await store.prepare()

    async def chunks():  # type: ignore[no-untyped-def]
        for _ in range(2):
            yield bytes(16 << 20)

    staged = await store.stage(chunks())
    s3.delay = {"PUT": 1.0}
    info = await staged.publish(KEY)
    assert info.size == staged.size
    await store.close()


async def test_a_stream_is_staged_by_a_server_that_is_slow_to_answer_the_check(
    limits: None, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_clients, "SILENCE_SECONDS", 30.0)
    store = S3Store(s3.place(), tmp_path)
    await store.prepare()

    async def chunks():  # type: ignore[no-untyped-def]
        yield b"bytes"

    s3.delay = {"HEAD": 1.0}
    with pytest.raises(StoreUnavailableError, match="does not answer in time"):
        await store.check()
    staged = await store.stage(chunks())
    assert staged.size == 5
    await staged.discard()
    await store.close()
