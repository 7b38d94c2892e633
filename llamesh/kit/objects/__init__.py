"""Object storage for model files: one protocol, a directory on one machine, any S3 server elsewhere.

Invariant: no incomplete object is visible. Bytes are staged under a name that no reader uses, may be inspected there, and are published
under their key atomically. Keys are content addresses made by `object_key`, never text of a user.
"""

from pathlib import Path

from llamesh.kit.objects.directory import DirectoryStore
from llamesh.kit.objects.parts import ObjectOrigin, PartedObject, PartedObjects, PartLayout
from llamesh.kit.objects.store import (
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

__all__ = [
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
    *,
    directory: Path | None = None,
    endpoint: str | None = None,
    bucket: str = "inference-models",
    secure: bool = True,
    access_key: str | None = None,
    secret_key: str | None = None,
    cache_directory: Path | None = None,
    cache_bytes: int = 0,
) -> ObjectStore:
    """Create the store: S3 if `endpoint` (host:port) is set, else `directory`.

    An S3 store keeps the local copies for engines in `cache_directory`, at most `cache_bytes` (0: what the disk has room for). Raises
    ValueError if the values do not name a usable store. Nothing is opened: call `prepare()` before use.
    """
    if endpoint:
        if cache_directory is None:
            raise ValueError("an S3 object store needs a cache directory for the files that engines open")
        # Imported only if needed: the S3 client takes 8 MB of memory.
        from llamesh.kit.objects.s3 import S3Store

        return S3Store(
            endpoint=endpoint,
            bucket=bucket,
            secure=secure,
            access_key=access_key,
            secret_key=secret_key,
            cache_directory=cache_directory,
            cache_bytes=cache_bytes,
        )
    if directory is None:
        raise ValueError("no object store: set an S3 endpoint or a directory")
    return DirectoryStore(directory)
