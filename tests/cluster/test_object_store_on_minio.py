"""What every object store promises, by the same tests as tests/unit/test_object_store.py, on a real MinIO."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from llamesh.kit.objects import ObjectStore, StoreDeniedError, StoreUnavailableError, object_store, put
from llamesh.kit.objects.s3 import S3Store
from llamesh.kit.source_places import StorePlace
from tests.cluster.minio_server import minio
from tests.cluster.s3_server import S3Server
from tests.unit.test_object_store import (
    KEY,
    chunks,
    test_a_cancelled_write_leaves_nothing,
    test_a_discarded_upload_leaves_nothing,
    test_a_local_path_is_a_file_with_the_bytes,
    test_a_source_that_fails_leaves_nothing,
    test_a_write_cancelled_at_any_moment_leaves_nothing,
    test_an_empty_object_is_an_object,
    test_delete_is_idempotent,
    test_only_generated_keys_reach_a_store,
    test_publishing_the_same_content_again_is_harmless,
    test_put_refuses_content_that_is_not_the_keys,
    test_read_gives_any_range,
    test_scan_finds_by_prefix_in_order,
    test_staged_bytes_are_readable_and_invisible_until_published,
)

__all__ = [
    "minio",
    "test_a_cancelled_write_leaves_nothing",
    "test_a_discarded_upload_leaves_nothing",
    "test_a_local_path_is_a_file_with_the_bytes",
    "test_a_source_that_fails_leaves_nothing",
    "test_a_write_cancelled_at_any_moment_leaves_nothing",
    "test_an_empty_object_is_an_object",
    "test_delete_is_idempotent",
    "test_only_generated_keys_reach_a_store",
    "test_publishing_the_same_content_again_is_harmless",
    "test_put_refuses_content_that_is_not_the_keys",
    "test_read_gives_any_range",
    "test_scan_finds_by_prefix_in_order",
    "test_staged_bytes_are_readable_and_invisible_until_published",
]


@dataclass(frozen=True)
class Bucket:
    """A bucket of the test's own, looked into as the tests of the fake look into it."""

    minio: S3Server
    name: str

    @property
    def objects(self) -> dict[str, int]:
        """Every object in it, staged ones too, with its size."""
        found = self.minio.client.list_objects(self.name, recursive=True)
        return {str(item.object_name): item.size or 0 for item in found}

    @property
    def uploads(self) -> dict[str, Path]:
        """Unfinished multipart uploads of the server."""
        return self.minio.uploads


@pytest.fixture
def s3(minio: S3Server) -> Bucket:
    return Bucket(minio, f"models-{secrets.token_hex(6)}")


def open_store(bucket: Bucket, folder: Path, *, access_key: str = "", secret_key: str = "") -> ObjectStore:
    place = StorePlace(
        endpoint=bucket.minio.endpoint,
        bucket=bucket.name,
        secure=False,
        access_key=SecretStr(access_key or bucket.minio.access_key),
        secret_key=SecretStr(secret_key or bucket.minio.secret_key),
    )
    made = object_store(folder / "objects", place, cache_directory=folder / "cache")
    assert isinstance(made, S3Store)
    return made


@pytest.fixture
async def store(s3: Bucket, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    made = open_store(s3, tmp_path)
    await made.prepare()
    yield made
    await made.close()
    assert s3.uploads == {}


async def test_large_objects_go_up_in_parts_and_arrive_whole(store: ObjectStore, s3: Bucket) -> None:
    size = 40 << 20
    staged = await store.stage(zeroes(size), expected_size=size)
    [name] = s3.objects
    # 16 MiB a part: three of them.
    assert str(s3.minio.client.stat_object(s3.name, name).etag).endswith("-3")
    key = f"models/{staged.sha256}.gguf"
    await staged.publish(key)
    await staged.discard()
    assert s3.objects == {key: size}


async def test_a_large_write_that_is_cancelled_ends_its_upload(store: ObjectStore, s3: Bucket) -> None:
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        async for chunk in zeroes(40 << 20):
            yield chunk
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.stage(endless()))
    await waiting.wait()
    assert s3.uploads
    # The marker, by whose name the upload can be found.
    assert list(s3.objects.values()) == [0]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (s3.objects, s3.uploads) == ({}, {})


async def zeroes(size: int) -> AsyncIterator[bytes]:
    for _ in range(size >> 20):
        yield bytes(1 << 20)


async def test_a_bucket_is_made_once_however_many_prepare_it(store: ObjectStore, s3: Bucket, tmp_path: Path) -> None:
    await put(store, KEY, chunks())
    other = open_store(s3, tmp_path / "other")
    await other.prepare()
    assert (await other.stat(KEY)).key == KEY
    assert await other.local_path(KEY) != await store.local_path(KEY)
    await other.close()


@pytest.mark.parametrize("wrong", [{"secret_key": "not-the-secret"}, {"access_key": "nobody"}])
async def test_wrong_credentials_are_denied(s3: Bucket, tmp_path: Path, wrong: dict[str, str]) -> None:
    refused = open_store(s3, tmp_path, **wrong)
    with pytest.raises(StoreDeniedError, match=r"SignatureDoesNotMatch|InvalidAccessKeyId|XAdminUserNotFound"):
        await refused.prepare()
    await refused.close()


async def test_a_server_that_was_stopped_is_unavailable_and_found_again(store: ObjectStore, s3: Bucket) -> None:
    await put(store, KEY, chunks())
    s3.minio.stop()
    try:
        with pytest.raises(StoreUnavailableError, match="cannot look up"):
            await store.stat(KEY)
        with pytest.raises(StoreUnavailableError, match="cannot write"):
            await store.stage(chunks())
    finally:
        s3.minio.start()
    assert (await store.stat(KEY)).key == KEY
