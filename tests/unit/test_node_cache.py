"""The cache of a node fills each digest once, verified, within its limit, and removes only what nobody uses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from llamesh.disk_space import RESERVE_BYTES, DiskSpace
from llamesh.file_holds import RemovalLock, held
from llamesh.kit.objects import ObjectDamagedError, StoreFullError, StoreUnavailableError, object_key
from llamesh.kit.objects.cache_eviction import MIN_KEPT_SECONDS
from llamesh.kit.objects.node_cache import PARALLEL_READS, NodeCache
from llamesh.kit.objects.parted_file import PartedFile, create_file
from llamesh.kit.objects.store import ObjectBusyError

PART = 1000
NOW = 2_000_000_000.0


def content(seed: int, size: int = 10_500) -> bytes:
    return random.Random(seed).randbytes(size)


def key_of(data: bytes, copy: str = "") -> str:
    return object_key("models", hashlib.sha256(data).hexdigest(), ".gguf", copy=copy)


class Remote:
    """Objects elsewhere. It counts the reads, and how many run at the same time."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads: list[tuple[int, int]] = []
        self.running = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def put(self, data: bytes, copy: str = "") -> str:
        self.objects[key_of(data, copy)] = data
        return key_of(data, copy)

    async def size_of(self, key: str) -> int:
        return len(self.objects[key])

    async def read(self, key: str, offset: int, length: int) -> AsyncIterator[bytes]:
        self.reads.append((offset, length))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
            data = self.objects[key][offset : offset + length]
            yield data[:300]
            await asyncio.sleep(0)
            yield data[300:]
        finally:
            self.running -= 1


@pytest.fixture
def remote() -> Remote:
    return Remote()


def cache(folder: Path, remote: Remote, limit: int = 0) -> NodeCache:
    made = NodeCache(folder, remote.read, remote.size_of, limit=limit, part_bytes=PART, clock=lambda: NOW)
    made.prepare()
    return made


def used(path: Path, seconds_ago: float) -> None:
    os.utime(path, (NOW - seconds_ago, NOW - seconds_ago))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


async def test_a_fill_reads_ranges_at_the_same_time_and_each_once(tmp_path: Path, remote: Remote) -> None:
    data = content(1)
    key = remote.put(data)
    made = cache(tmp_path, remote)
    path = await made.path(key, len(data))
    assert path.read_bytes() == data
    assert sorted(remote.reads) == [(start, min(PART, len(data) - start)) for start in range(0, len(data), PART)]
    assert remote.most == PARALLEL_READS
    assert await made.size() == len(data)


async def test_objects_with_the_same_bytes_are_one_file(tmp_path: Path, remote: Remote) -> None:
    data = content(2)
    made = cache(tmp_path, remote)
    first = await made.path(remote.put(data, "0" * 16), len(data))
    reads = len(remote.reads)
    second = await made.path(remote.put(data, "1" * 16), len(data))
    assert (second, len(remote.reads)) == (first, reads)
    assert names(tmp_path) == {first.name}


async def test_two_processes_of_a_node_fill_a_digest_once(tmp_path: Path, remote: Remote) -> None:
    data = content(3)
    key = remote.put(data)
    # A lock belongs to an open file, so two caches in one process exclude each other as two processes do.
    one, other = cache(tmp_path, remote), cache(tmp_path, remote)
    paths = await asyncio.gather(one.path(key, len(data)), other.path(key, len(data)), one.path(key, len(data)))
    assert len(set(paths)) == 1
    assert len(remote.reads) == 11


async def test_a_fill_whose_process_was_killed_is_taken_over_or_swept(tmp_path: Path, remote: Remote) -> None:
    data = content(4)
    key = remote.put(data)
    made = cache(tmp_path, remote)
    staged = tmp_path / "staging" / f"{made.place(key).name}.parts"
    create_file(staged, len(data))
    staged.write_bytes(b"x" * len(data))
    assert (await made.path(key, len(data))).read_bytes() == data
    create_file(staged, len(data))
    with contextlib.closing(PartedFile(staged)):
        made.prepare()
        assert staged.exists()
    made.prepare()
    assert names(tmp_path) == {made.place(key).name}


async def test_a_cache_that_was_removed_is_made_again(tmp_path: Path, remote: Remote) -> None:
    data = content(4)
    key = remote.put(data)
    made = cache(tmp_path / "cache", remote)
    shutil.rmtree(tmp_path / "cache")
    assert await made.size() == 0
    assert (await made.path(key, len(data))).read_bytes() == data


async def test_a_disk_that_fails_does_not_mean_that_the_object_is_missing(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cache(tmp_path, remote)

    def gone(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(PartedFile, "publish", gone)
    with pytest.raises(StoreUnavailableError, match="model cache of this machine"):
        await made.path(remote.put(content(4)), 10_500)


async def test_a_file_that_was_published_before_its_lock_was_taken_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has another name then, so its number of links is not 0."""
    staged, target = tmp_path / "staged", tmp_path / "models" / "published"
    create_file(staged, 10)
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first = PartedFile(staged)
        first.publish(target)
        first.remove()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ObjectBusyError, match="another process removed"):
        PartedFile(staged)
    assert target.exists()


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_was_removed_before_its_lock_was_taken_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    path = tmp_path / "model"
    path.write_text("first")
    path.with_name("other name").hardlink_to(path)
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        path.unlink()
        if replaced:
            path.write_text("second")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    if replaced:
        assert RemovalLock.of(path) is None
        assert path.read_text() == "second"
    else:
        with pytest.raises(FileNotFoundError), held([path]):
            pytest.fail("it is held under a name that it lost")


async def test_fills_that_end_while_others_make_room_disturb_nobody(tmp_path: Path, remote: Remote) -> None:
    made = cache(tmp_path, remote, limit=1 << 30)
    keys = [remote.put(content(seed, 64)) for seed in range(200)]
    others = cache(tmp_path, remote, limit=1 << 30)
    paths = await asyncio.gather(*(each.path(key, 64) for key in keys for each in (made, others)))
    assert len(set(paths)) == 200


async def test_a_file_with_another_name_stays_because_its_removal_frees_nothing(tmp_path: Path, remote: Remote) -> None:
    made = cache(tmp_path / "cache", remote, limit=15_000)
    linked = await made.path(remote.put(content(1)), 10_500)
    (tmp_path / "job").hardlink_to(linked)
    used(linked, 9 * MIN_KEPT_SECONDS)
    with pytest.raises(StoreFullError):
        await made.path(remote.put(content(2)), 10_500)
    assert linked.exists()


async def test_a_cancelled_fill_leaves_nothing(tmp_path: Path, remote: Remote) -> None:
    data = content(5)
    key = remote.put(data)
    made = cache(tmp_path, remote)
    remote.gate.clear()
    asking = asyncio.create_task(made.path(key, len(data)))
    while remote.running < PARALLEL_READS:
        await asyncio.sleep(0.001)
    await made.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("stored", "words"), [(content(6)[:-1] + b"\0", "SHA-256"), (content(6)[:-1], "10499 bytes instead of 10500")]
)
async def test_a_damaged_object_never_becomes_a_file(tmp_path: Path, remote: Remote, stored: bytes, words: str) -> None:
    key = key_of(content(6))
    remote.objects[key] = stored
    with pytest.raises(ObjectDamagedError, match=words):
        await cache(tmp_path, remote).path(key, 10_500)
    assert names(tmp_path) == set()


async def test_the_least_recently_used_files_make_room(tmp_path: Path, remote: Remote) -> None:
    made = cache(tmp_path, remote, limit=35_000)
    paths = [await made.path(remote.put(content(seed)), 10_500) for seed in range(3)]
    for path, age in zip(paths, (3 * MIN_KEPT_SECONDS, 5 * MIN_KEPT_SECONDS, 4 * MIN_KEPT_SECONDS), strict=True):
        used(path, age)
    newest = await made.path(remote.put(content(9)), 10_500)
    assert names(tmp_path) == {paths[0].name, paths[2].name, newest.name}
    used(newest, 2 * MIN_KEPT_SECONDS)
    # A copy that is asked for again is the most recently used one.
    await made.path(key_of(content(0)), 10_500)
    other = await made.path(remote.put(content(10)), 10_500)
    assert names(tmp_path) == {paths[0].name, newest.name, other.name}


async def test_a_file_that_is_held_or_was_used_just_now_stays(tmp_path: Path, remote: Remote) -> None:
    made = cache(tmp_path, remote, limit=25_000)
    running, starting = [await made.path(remote.put(content(seed)), 10_500) for seed in range(2)]
    with held([running], lambda: NOW):
        used(running, 9 * MIN_KEPT_SECONDS)
        used(starting, MIN_KEPT_SECONDS - 1)
        with pytest.raises(
            StoreFullError, match=r"no room for 10500 bytes: 6500 bytes are missing.*LLAMESH_CACHE_BYTES"
        ):
            await made.path(remote.put(content(9)), 10_500)
        assert names(tmp_path) == {running.name, starting.name}
        used(starting, MIN_KEPT_SECONDS + 1)
        await made.path(key_of(content(9)), 10_500)
        assert running.exists()
        assert not starting.exists()
    used(running, MIN_KEPT_SECONDS + 1)
    await made.path(remote.put(content(10)), 10_500)
    assert not running.exists()


async def test_nothing_is_removed_if_that_would_not_be_enough(tmp_path: Path, remote: Remote) -> None:
    made = cache(tmp_path, remote, limit=25_000)
    paths = [await made.path(remote.put(content(seed)), 10_500) for seed in range(2)]
    used(paths[0], 9 * MIN_KEPT_SECONDS)
    used(paths[1], 0)
    with pytest.raises(StoreFullError):
        await made.path(remote.put(content(9, 20_000)), 20_000)
    assert names(tmp_path) == {path.name for path in paths}


async def test_fills_at_the_same_time_do_not_get_the_same_room(tmp_path: Path, remote: Remote) -> None:
    made = cache(tmp_path, remote, limit=15_000)
    remote.gate.clear()
    first = asyncio.create_task(made.path(remote.put(content(1)), 10_500))
    while not remote.running:
        await asyncio.sleep(0.001)
    with pytest.raises(StoreFullError):
        await made.path(remote.put(content(2)), 10_500)
    remote.gate.set()
    assert (await first).read_bytes() == content(1)


async def test_without_a_limit_the_disk_bounds_the_cache(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cache(tmp_path, remote)
    old = await made.path(remote.put(content(1)), 10_500)
    used(old, 2 * MIN_KEPT_SECONDS)
    monkeypatch.setattr(
        "llamesh.kit.objects.cache_eviction.disk_space",
        lambda _: DiskSpace(free=RESERVE_BYTES + 10_000, total=10 * RESERVE_BYTES),
    )
    new = await made.path(remote.put(content(2)), 10_500)
    assert names(tmp_path) == {new.name}


async def test_a_hold_that_comes_too_late_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"x")
    claim = RemovalLock.of(path)
    assert claim is not None
    outcome: list[BaseException | None] = []

    def hold() -> None:
        try:
            with held([path]):
                outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=hold)
    thread.start()
    claim.remove()
    claim.end()
    thread.join()
    assert isinstance(outcome[0], FileNotFoundError)


async def test_a_staged_file_that_was_removed_while_it_was_opened_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parts"
    create_file(path, 10)
    real = os.open

    def slow(*args: object, **kwargs: object) -> int:
        fd: int = real(*args, **kwargs)  # type: ignore[arg-type]
        path.unlink()
        path.write_bytes(b"another file")
        return fd

    monkeypatch.setattr("llamesh.kit.objects.parted_file.os.open", slow)
    with pytest.raises(StoreUnavailableError, match="another process removed"):
        PartedFile(path)


def test_ends_of_holds_leave_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"x")
    with held([path, path]):
        assert RemovalLock.of(path) is None
    claim = RemovalLock.of(path)
    assert claim is not None
    claim.end()


@pytest.fixture(autouse=True)
def no_open_files() -> Iterator[None]:
    here = psutil.Process()
    before = len(here.open_files())
    yield
    assert len(here.open_files()) == before
