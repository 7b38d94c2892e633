"""Parts in S3: the server says what it has, memory is bounded, and uploads that nothing remembers are found in the end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from llamesh.kit.objects import (
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectOrigin,
    StoreError,
    object_key,
    s3_parts,
)
from llamesh.kit.objects.s3 import S3Store, server_of
from tests.unit.fake_s3 import TIME, FakeS3, fake_s3
from tests.unit.objects_in_parts import CONTENT, DIGEST, KEY, NAME, PART, Place, chunks, created, write

STAGED = f"staging/{NAME}.parts"


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


class Clock:
    """The time of the store."""

    age = timedelta()

    def __call__(self) -> object:
        return TIME + self.age


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(s3: FakeS3, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Store]:
    monkeypatch.setattr(s3_parts, "MIN_PART_BYTES", 1)
    made = S3Store(s3.place(), tmp_path, clock=clock)  # type: ignore[arg-type]
    await made.prepare()
    yield made
    await made.close()


@pytest.fixture
async def place(store: S3Store) -> Place:
    return await created(store)


def test_parts_keep_the_limits_of_s3(s3: FakeS3, tmp_path: Path) -> None:
    parts = S3Store(s3.place(), tmp_path).parts
    assert parts.layout(100 << 20, 1 << 20).part_size == 5 << 20
    assert parts.layout(100 << 20, 16 << 20).part_size == 16 << 20
    assert parts.layout(2 << 40, 16 << 20).count <= 9_000


async def test_a_part_that_was_sent_and_not_recorded_is_not_sent_again(s3: FakeS3, place: Place) -> None:
    s3.page = 2
    parted = await place.open()
    for number in (1, 2, 3, 5):
        offset, length = parted.layout.span(number)
        await parted.write(number, chunks(CONTENT[offset : offset + length]))
    again = await place.open({1: parted.done[1], 2: "of another upload"})
    assert sorted(again.done) == [1, 3, 5]
    await write(again, 2, 4, 6)
    assert (await again.finish()).sha256 == DIGEST


async def test_an_upload_that_was_completed_is_found_complete(s3: FakeS3, place: Place) -> None:
    """The process died between the completion and everything after it."""
    parted = await place.open()
    await write(parted, 1, 2, 3, 4, 5, 6)
    await parted.finish()
    assert (s3.uploads, list(s3.objects)) == ({}, [STAGED])
    again = await place.open(parted.done)
    assert list(again.layout.missing(again.done)) == []
    assert (await again.finish()).sha256 == DIGEST
    s3.objects[STAGED] = CONTENT[:-1]
    with pytest.raises(ObjectNotFoundError):
        await place.open(parted.done)


async def test_a_writer_waits_for_the_parts_before_its_own(place: Place) -> None:
    """Otherwise it would hold a part in memory and begin another."""
    parted = await place.open()
    later = asyncio.create_task(write(parted, 3))
    earlier = asyncio.create_task(write(parted, 2))
    async with asyncio.timeout(20):
        while len(parted.done) < 2:
            await asyncio.sleep(0.01)
    done, _ = await asyncio.wait({later, earlier}, timeout=0.05)
    assert not done
    await write(parted, 1)
    async with asyncio.timeout(20):
        await asyncio.gather(later, earlier)


async def test_an_upload_under_its_key_is_visible_when_it_is_complete_and_not_copied(
    s3: FakeS3, store: S3Store
) -> None:
    place = await created(store, KEY)
    parted = await place.open()
    await write(parted, 1, 2, 3, 4, 5)
    assert (parted.digest_on_the_way(), s3.objects) == ("", {})
    await write(parted, 6)
    assert (parted.key, parted.digest_on_the_way(), s3.objects) == (KEY, DIGEST, {})
    complete = await parted.finish()
    assert (complete.key, complete.size, complete.sha256) == (KEY, len(CONTENT), DIGEST)
    with complete.open() as file:
        assert file.read(10) == CONTENT[:10]
    with pytest.raises(StoreError, match="cannot be published as"):
        await complete.publish(object_key("models", DIGEST, ".gguf", copy="0" * 16))
    assert (await complete.publish(KEY)).size == len(CONTENT)
    await complete.discard()
    assert (s3.objects, s3.whole_copies) == ({KEY: CONTENT}, [])
    again = await (await place.open(parted.done)).finish()
    assert (again.key, again.sha256) == (KEY, DIGEST)


async def test_removing_an_upload_under_its_key_leaves_a_complete_object(s3: FakeS3, store: S3Store) -> None:
    place = await created(store, KEY)
    await write(await place.open(), 1)
    await place.remove()
    assert (s3.uploads, s3.objects) == ({}, {})
    place = await created(store, KEY)
    parted = await place.open()
    await write(parted, 1, 2, 3, 4, 5, 6)
    await parted.finish()
    await place.remove()
    assert s3.objects == {KEY: CONTENT}


async def test_only_uploads_under_keys_count_as_abandoned_and_no_objects(
    s3: FakeS3, store: S3Store, clock: Clock
) -> None:
    await created(store, KEY)
    s3.objects[KEY] = CONTENT
    s3.uploads["theirs"], s3.upload_keys["theirs"] = {}, "another/name"
    clock.age = timedelta(days=8)
    ((name, upload),) = await store.parts.found()
    assert name == KEY
    await store.parts.remove(name, upload)
    assert (list(s3.uploads), list(s3.objects)) == (["theirs"], [KEY])


def origin(s3: FakeS3, **changes: str) -> ObjectOrigin:
    """The object `a/b c.gguf` with the content, in another bucket of the server."""
    s3.objects["a/b c.gguf"] = CONTENT
    etag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
    values = {"endpoint": s3.endpoint, "access_key": "k", "bucket": "others", "key": "a/b c.gguf", "etag": etag}
    return ObjectOrigin(secure=False, **(values | changes))


async def test_parts_are_copied_inside_the_server_and_hashed_when_they_are_complete(s3: FakeS3, place: Place) -> None:
    parted = await place.open()
    behind = asyncio.create_task(write(parted, 2))
    for number in (1, 3, 4, 5, 6):
        assert await parted.copy(number, origin(s3)) == parted.done[number]
        await parted.written(number)
    async with asyncio.timeout(20):
        await behind
    assert s3.copied == len(CONTENT) - PART
    assert (await parted.finish()).sha256 == DIGEST
    assert sorted((await place.open(parted.done)).done) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("other", [{"endpoint": "127.0.0.1:1"}, {"access_key": "theirs"}])
async def test_nothing_is_copied_with_other_credentials_or_from_another_server(
    s3: FakeS3, place: Place, other: dict[str, str]
) -> None:
    parted = await place.open()
    assert await parted.copy(1, origin(s3, **other)) is None
    assert [request for request in s3.requests if "partNumber" in request[1]] == []


async def test_a_server_that_refuses_to_copy_is_asked_once(s3: FakeS3, place: Place) -> None:
    s3.refuse_copies = 403, "AccessDenied"
    parted = await place.open()
    for number in (1, 2):
        assert await parted.copy(number, origin(s3)) is None
    assert len([request for request in s3.requests if "partNumber" in request[1]]) == 1
    await write(parted, 1, 2, 3, 4, 5, 6)
    assert (await parted.finish()).sha256 == DIGEST


async def test_no_part_of_an_object_that_was_replaced_is_copied(s3: FakeS3, place: Place) -> None:
    parted = await place.open()
    with pytest.raises(ObjectChangedError, match="changed while it was copied"):
        await parted.copy(1, origin(s3, etag='"another"'))
    assert parted.done == {}


def test_one_server_has_one_address() -> None:
    assert server_of("Store:443", secure=True) == server_of("store", secure=True)
    assert server_of("[::1]:80", secure=False) == server_of("[::1]", secure=False)
    assert len({server_of(*each) for each in [("a", True), ("a", False), ("b", True), ("a:1", True)]}) == 4


async def test_a_part_of_an_upload_that_was_aborted_is_refused(place: Place) -> None:
    parted = await place.open()
    await place.remove()
    with pytest.raises(ObjectNotFoundError, match="NoSuchUpload"):
        await parted.write(1, chunks(CONTENT[:PART]))


@pytest.mark.parametrize("complete", [False, True])
async def test_only_old_uploads_count_as_abandoned(
    s3: FakeS3, store: S3Store, place: Place, clock: Clock, complete: bool
) -> None:
    parted = await place.open()
    await write(parted, 1, 2, 3, 4, 5, 6)
    if complete:
        await parted.finish()
    clock.age = timedelta(days=6)
    await store.prepare()
    assert await store.parts.found() == []
    clock.age = timedelta(days=8)
    await store.prepare()
    ((name, upload),) = await store.parts.found()
    await store.parts.remove(name, upload)
    assert (s3.uploads, s3.objects) == ({}, {})


async def test_a_slow_upload_counts_as_abandoned_a_week_after_its_last_part(
    s3: FakeS3, store: S3Store, place: Place, clock: Clock
) -> None:
    """Another mesh writes it, whose database has the record."""
    await write(await place.open(), 1, 2)
    s3.part_time = TIME + timedelta(days=20)
    clock.age = timedelta(days=26)
    assert await store.parts.found() == []
    clock.age = timedelta(days=28)
    assert len(await store.parts.found()) == 1


async def test_an_upload_is_kept_as_long_as_another_mesh_may_have_it_paused(
    s3: FakeS3, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_parts, "MIN_PART_BYTES", 1)
    kept = S3Store(s3.place(), tmp_path, clock=clock, kept=timedelta(days=31))  # type: ignore[arg-type]
    await kept.prepare()
    await created(kept)
    clock.age = timedelta(days=30)
    assert await kept.parts.found() == []
    clock.age = timedelta(days=32)
    assert len(await kept.parts.found()) == 1
    await kept.close()
