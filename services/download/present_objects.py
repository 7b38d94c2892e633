"""The objects of the catalogue that have the bytes of a source's file, so that these are not fetched again.

A file is known by the SHA-256 that its source announces, else by its version: a digest of its address, ETag, size and revision, which is
recorded with each file of a model. Invariant: an object counts only while the store has it with its size, and no damage of it is recorded.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from sqlalchemy import ColumnElement, select

from llamesh.kit.database import Database
from llamesh.kit.objects import ObjectInfo, ObjectNotFoundError, ObjectStore
from services.download.sources import SourceObject
from services.download.tables import ModelFileRow


def source_version(address: str, found: SourceObject) -> str:
    """Return the version of a source's object; "" if its ETag does not say that the bytes are the same."""
    if not found.etag or found.etag.startswith("W/"):
        return ""
    parts = (address, found.etag, str(found.size), found.revision)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class PresentObjects:
    """Looks for the objects of the records."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self._database = database
        self._store = store

    async def of_source(self, address: str, found: SourceObject) -> PresentObject | None:
        """Return the object with the bytes of a file that was opened at an address; None if there is none."""
        version = source_version(address, found)
        same: ColumnElement[bool] = ModelFileRow.source_version == version
        if found.sha256:
            same = ModelFileRow.sha256 == found.sha256
        elif not version:
            return None
        async with self._database.read() as session:
            query = select(ModelFileRow.sha256, ModelFileRow.size_bytes).where(same).limit(1)
            known = (await session.execute(query)).first()
        if known is None or found.size not in (None, known.size_bytes):
            return None
        key, _ = await self.sound(known.sha256, known.size_bytes)
        return PresentObject(self._store, key, known.sha256, known.size_bytes) if key else None

    async def sound(self, sha256: str, size: int) -> tuple[str, frozenset[str]]:
        """Return the key of a sound object of a record with these bytes, or ""; and the keys of unsound ones."""
        async with self._database.read() as session:
            query = select(ModelFileRow.object_key, ModelFileRow.damage).where(ModelFileRow.sha256 == sha256)
            known = (await session.execute(query)).all()
        # The damage may be recorded in only one of several records with the same key.
        damaged = {(key, damage) for key, damage in known}
        unsound = set()
        for key in sorted({key for key, _ in damaged}):
            try:
                info = await self._store.stat(key)
            except ObjectNotFoundError:
                unsound.add(key)
                continue
            if info.size == size and (key, version_of(info)) not in damaged:
                return key, frozenset(unsound)
            unsound.add(key)
        return "", frozenset(unsound)


class PresentObject:
    """A published object in the place of a staged one."""

    key = ""

    def __init__(self, store: ObjectStore, key: str, sha256: str, size: int) -> None:
        self._store = store
        self._key = key
        self.sha256 = sha256
        self.size = size

    def open(self) -> BinaryIO:
        """See StagedObject."""
        return self._store.open(self._key)

    async def publish(self, key: str) -> ObjectInfo:
        """Refuse: it is published only if its last record was removed meanwhile, and its bytes with it."""
        raise ObjectNotFoundError(f"{self._key} was removed while a model was to get it")

    async def discard(self) -> None:
        """Leave the object to its records."""


def version_of(info: ObjectInfo) -> str:
    """Return the key of one version of an object: an object that replaces it has another time or size."""
    return f"{info.size}:{info.modified.isoformat()}"
