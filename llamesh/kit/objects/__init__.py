"""Object storage for model files: one protocol, a directory on one machine, any S3 server elsewhere.

Invariant: no incomplete object is visible. Bytes are staged under a name that no reader uses, may be inspected there, and are published
under their key atomically; or they are uploaded under their key, if it is known before, and are visible from their last byte on. Keys are
content addresses made by `object_key`, never text of a user.
"""

from datetime import timedelta
from pathlib import Path

from llamesh.kit.objects.directory import DirectoryStore
from llamesh.kit.objects.parts import ObjectOrigin, PartedObject, PartedObjects, PartLayout
from llamesh.kit.objects.store import (
    SWEEP_SECONDS,
    ObjectChangedError,
    ObjectDamagedError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStore,
    StagedObject,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreShortError,
    StoreUnavailableError,
    object_key,
    put,
)
from llamesh.kit.source_places import StorePlace

__all__ = [
    "SWEEP_SECONDS",
    "DirectoryStore",
    "ObjectChangedError",
    "ObjectDamagedError",
    "ObjectInfo",
    "ObjectNotFoundError",
    "ObjectOrigin",
    "ObjectStore",
    "PartLayout",
    "PartedObject",
    "PartedObjects",
    "StagedObject",
    "StoreDeniedError",
    "StoreError",
    "StoreFullError",
    "StoreShortError",
    "StoreUnavailableError",
    "object_key",
    "object_store",
    "put",
]


def object_store(
    directory: Path,
    place: StorePlace | None = None,
    *,
    cache_directory: Path,
    cache_bytes: int = 0,
    kept: timedelta = timedelta(),
    writer: str = "",
) -> ObjectStore:
    """Create the store: the bucket of `place`, or `directory` if there is none.

    An S3 store keeps the local copies for engines in `cache_directory`, at most `cache_bytes` (0: what the disk has room for). Another
    mesh of the bucket may need an unfinished object for `kept` after its last write; at least a week is assumed. `writer` identifies the
    writer of staged bytes over its restarts: what it left when it was killed is removed at the next start. At most one process at a time is
    a writer; "" is none in particular. Nothing is opened: call `prepare()` before use.
    """
    if place is None:
        return DirectoryStore(directory)
    # Imported only if needed: the S3 client takes 8 MB of memory.
    from llamesh.kit.objects.s3 import S3Store

    return S3Store(place, cache_directory, cache_bytes, kept=kept, writer=writer)
