"""Multipart uploads on a real MinIO, which has a smallest size of parts and lists uploads by their whole name only."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llamesh.kit.objects import ObjectNotFoundError, ObjectStore, PartedObject, object_key
from tests.cluster.minio_server import minio
from tests.cluster.test_object_store_on_minio import Bucket, s3, store

__all__ = ["minio", "s3", "store"]

PART = 5 << 20
CONTENT = random.Random(2).randbytes(3 * PART + 1000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "1" * 32


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1 << 20):
        yield data[at : at + (1 << 20)]


async def send(parted: PartedObject, *numbers: int) -> None:
    for number in numbers:
        offset, length = parted.layout.span(number)
        await parted.write(number, chunks(CONTENT[offset : offset + length]))


async def test_an_upload_goes_on_with_the_parts_that_the_server_lacks(store: ObjectStore, s3: Bucket) -> None:
    parts = store.parts
    assert parts is not None
    layout = parts.layout(len(CONTENT), 1 << 20)
    upload = await parts.create(NAME, layout)
    first = await parts.open(NAME, upload, layout, {})
    await send(first, 4, 1)
    await first.close()
    await store.prepare()
    again = await parts.open(NAME, upload, layout, {1: first.done[1]})
    missing = list(layout.missing(again.done))
    assert missing == [2, 3]
    for number in missing:
        await send(again, number)
        await again.written(number)
    whole = await again.finish()
    assert (whole.sha256, s3.uploads) == (DIGEST, {})
    await whole.publish(object_key("models", DIGEST, ".gguf"))
    # A process that died just after the completion finds the object complete.
    assert len((await parts.open(NAME, upload, layout, {})).done) == layout.count
    await parts.remove(NAME, upload)
    assert list(s3.objects) == [object_key("models", DIGEST, ".gguf")]
    with pytest.raises(ObjectNotFoundError):
        await parts.open(NAME, upload, layout, {})


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_removed_upload_leaves_nothing(store: ObjectStore, s3: Bucket, tmp_path: Path, recorded: bool) -> None:
    parts = store.parts
    assert parts is not None
    layout = parts.layout(len(CONTENT), PART)
    upload = await parts.create(NAME, layout)
    parted = await parts.open(NAME, upload, layout, {})
    await send(parted, 1)
    assert s3.uploads
    for _ in range(2):
        await parts.remove(NAME, upload if recorded else "")
    assert (s3.objects, s3.uploads) == ({}, {})
    with pytest.raises(ObjectNotFoundError):
        await send(parted, 2)
