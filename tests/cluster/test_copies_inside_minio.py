"""Copies inside a real MinIO: from Quant's bucket to the store by the server itself, with nothing faked."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

import pytest

from llamesh.kit.objects import ObjectChangedError, ObjectOrigin, ObjectStore, object_key
from tests.cluster.minio_server import minio
from tests.cluster.s3_server import S3Server
from tests.cluster.test_object_store_on_minio import Bucket, open_store, s3, store

__all__ = ["minio", "s3", "store"]

PART = 5 << 20
CONTENT = random.Random(3).randbytes(2 * PART + 1000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "2" * 32
KEY = "sub dir/a+b c%20d=ü.gguf"


@pytest.fixture
def origin(minio: S3Server) -> ObjectOrigin:
    if not minio.client.bucket_exists("llm-models"):
        minio.client.make_bucket("llm-models")
    found = minio.client.put_object("llm-models", KEY, io.BytesIO(CONTENT), len(CONTENT))
    return ObjectOrigin(minio.endpoint, False, minio.access_key, "llm-models", KEY, f'"{found.etag}"')


async def test_parts_are_copied_by_the_server_and_go_on_after_a_restart(
    store: ObjectStore, s3: Bucket, origin: ObjectOrigin, tmp_path: Path
) -> None:
    assert store.parts is not None
    layout = store.parts.layout(len(CONTENT), PART)
    upload = await store.parts.create(NAME, layout)
    parted = await store.parts.open(NAME, upload, layout, {})
    tag = await parted.copy(2, origin)
    await parted.close()
    again = open_store(s3, tmp_path / "again")
    assert again.parts is not None
    parted = await again.parts.open(NAME, upload, layout, {})
    assert parted.done == {2: tag}
    for number in (1, 3):
        assert await parted.copy(number, origin)
        await parted.written(number)
    whole = await parted.finish()
    assert (whole.sha256, s3.uploads) == (DIGEST, {})
    await whole.publish(object_key("models", DIGEST, ".gguf"))
    await again.parts.remove(NAME, upload)
    assert s3.objects == {object_key("models", DIGEST, ".gguf"): len(CONTENT)}
    await again.close()


async def test_no_part_of_an_object_that_was_replaced_or_removed_is_copied(
    store: ObjectStore, origin: ObjectOrigin, minio: S3Server
) -> None:
    assert store.parts is not None
    layout = store.parts.layout(len(CONTENT), PART)
    upload = await store.parts.create(NAME, layout)
    parted = await store.parts.open(NAME, upload, layout, {})
    minio.client.put_object("llm-models", KEY, io.BytesIO(CONTENT[::-1]), len(CONTENT))
    with pytest.raises(ObjectChangedError):
        await parted.copy(1, origin)
    minio.client.remove_object("llm-models", KEY)
    assert await parted.copy(1, origin) is None
    await store.parts.remove(NAME, upload)
