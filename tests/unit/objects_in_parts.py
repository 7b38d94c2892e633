"""An object that is written in parts into a directory or behind S3, for tests of what both promise."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from llamesh.kit.objects import ObjectStore, PartedObject, PartedObjects, PartLayout, object_key

PART = 64 << 10
CONTENT = random.Random(1).randbytes(5 * PART + 777)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
KEY = object_key("models", DIGEST, ".gguf")
NAME = "0" * 32


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 10_000):
        await asyncio.sleep(0)
        yield data[at : at + 10_000]


async def write(parted: PartedObject, *numbers: int) -> None:
    for number in numbers:
        offset, length = parted.layout.span(number)
        await parted.write(number, chunks(CONTENT[offset : offset + length]))
        await parted.written(number)


@dataclass
class Place:
    """One object of a store."""

    store: ObjectStore
    layout: PartLayout
    upload: str
    name: str = NAME

    @property
    def parts(self) -> PartedObjects:
        assert self.store.parts is not None
        return self.store.parts

    async def open(self, recorded: Mapping[int, str] | None = None) -> PartedObject:
        return await self.parts.open(self.name, self.upload, self.layout, recorded or {})

    async def remove(self) -> None:
        await self.parts.remove(self.name, self.upload)


async def created(store: ObjectStore, name: str = NAME) -> Place:
    assert store.parts is not None
    layout = store.parts.layout(len(CONTENT), PART)
    return Place(store, layout, await store.parts.create(name, layout), name)
