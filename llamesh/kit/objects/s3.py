"""An object store on an S3 server: MinIO or any other server with the same protocol.

A staged object is an ordinary object under `staging/` (`s3_staging.py`), or a multipart upload that becomes one (`s3_parts.py`), which
`scan` and the pattern of keys leave out. Publishing is a copy inside the server, which is atomic, so no byte passes through this process
twice; an upload that was made under its key is not copied. The `minio` client blocks, so every call runs in the store's own threads: a long
upload must not occupy the default threads of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from minio import Minio
from minio.commonconfig import CopySource

from llamesh.disk_space import DiskSpace
from llamesh.kit.clock import utc_now
from llamesh.kit.logs import log
from llamesh.kit.objects.node_cache import NodeCache
from llamesh.kit.objects.parts import ObjectOrigin
from llamesh.kit.objects.s3_clients import S3Clients
from llamesh.kit.objects.s3_errors import S3Errors
from llamesh.kit.objects.s3_parts import S3Parts
from llamesh.kit.objects.s3_reader import ObjectReader
from llamesh.kit.objects.s3_staging import S3Staging
from llamesh.kit.objects.staging import BLOCK
from llamesh.kit.objects.store import (
    ObjectInfo,
    StagedObject,
    StoreError,
    StoreUnavailableError,
    checked_key,
    is_key,
)
from llamesh.kit.source_places import StorePlace

_STAGING = "staging/"
MIN_KEPT = timedelta(days=7)
"""Minimum time after its last write for which an unfinished object that nothing here knows is kept: another mesh may use the bucket."""
_THREADS = 16

T = TypeVar("T")


class S3Store:
    """Objects in one bucket, with local copies for engines in `cache_directory`, at most `cache_bytes` (0: what the disk has room for).

    `kept`: time after its last write for which another mesh of the bucket may need an unfinished object, at least MIN_KEPT. `writer`: see
    `object_store`. `place.region` is not used: the client asks the server for it.
    """

    def __init__(
        self,
        place: StorePlace,
        cache_directory: Path,
        cache_bytes: int = 0,
        clock: Callable[[], datetime] = utc_now,
        kept: timedelta = timedelta(),
        writer: str = "",
    ) -> None:
        self.name = place.bucket
        self.errors = S3Errors(place.server_settings, place.bucket_setting)
        self._clock = clock
        self._cache = NodeCache(cache_directory, self.read_object, self._size, limit=cache_bytes)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        # The threads may all wait for a server that hangs.
        self._probes = ThreadPoolExecutor(1, thread_name_prefix="s3-check")
        clients = S3Clients(place, _THREADS)
        self.client, self.long, self._probe = clients.usual, clients.long, clients.probe
        self._reader = (server_of(place.endpoint, place.secure), place.access_key.get_secret_value())
        kept = max(kept, MIN_KEPT)
        self.parts = S3Parts(self, _STAGING, clock, kept)
        self._staging = S3Staging(self, _STAGING, writer, clock, kept)

    async def prepare(self) -> None:
        """See ObjectStore."""
        with self.errors(f"cannot use bucket {self.name}"):
            await self._checked()
        await self.prepare_cache()
        await self.sweep()

    async def prepare_cache(self) -> None:
        """Prepare the local copies alone, for a process that only reads."""
        await self.run(self._cache.prepare)

    async def check(self) -> None:
        """See ObjectStore."""
        with self.errors(f"cannot use bucket {self.name}"):
            await self._checked()

    async def _checked(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._probes, self._ensure_bucket, self._probe)

    def _ensure_bucket(self, client: Minio) -> None:
        if not client.bucket_exists(self.name):
            log.warning("the bucket is missing and is created", bucket=self.name)
            client.make_bucket(self.name)

    async def space(self) -> DiskSpace | None:
        """See ObjectStore. S3 has no call for it."""
        return None

    async def cached_bytes(self) -> int | None:
        """See ObjectStore."""
        return await self._cache.size()

    async def stage(self, chunks: AsyncIterator[bytes], *, expected_size: int | None = None) -> StagedObject:
        """See ObjectStore."""
        with self.errors("cannot write to the object store"):
            # Not with the probe: a busy server may be slow and still take the bytes.
            await self.run(self._ensure_bucket, self.client)
        return await self._staging.stage(chunks, expected_size)

    async def sweep(self) -> None:
        """See ObjectStore."""
        await self._staging.sweep()

    async def remove_staged(self, writer: str) -> None:
        """See ObjectStore."""
        await self._staging.remove_of(writer)

    async def stat(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        checked_key(key)
        with self.errors(f"cannot look up {key}"):
            found = await self.run(self.client.stat_object, self.name, key)
        return ObjectInfo(key=key, size=found.size or 0, modified=found.last_modified or self._clock())

    async def _size(self, key: str) -> int:
        return (await self.stat(key)).size

    async def delete(self, key: str) -> None:
        """See ObjectStore. The local copy stays: an object of another bucket may have its bytes, and an engine may be about to open it."""
        checked_key(key)
        with self.errors(f"cannot delete {key}"):
            await self.run(self.client.remove_object, self.name, key)

    async def scan(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """See ObjectStore."""
        with self.errors("cannot list objects"):
            page = await self.run(self._list, prefix)
        for info in page:
            yield info

    def _list(self, prefix: str) -> list[ObjectInfo]:
        found = []
        for entry in self.client.list_objects(self.name, prefix=prefix or None, recursive=True):
            with contextlib.suppress(ValueError):
                key = checked_key(entry.object_name or "")
                found.append(ObjectInfo(key=key, size=entry.size or 0, modified=entry.last_modified or self._clock()))
        return found

    async def read(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See ObjectStore."""
        if length == 0:
            return
        async for block in self.read_object(checked_key(key), offset, length or 0):
            yield block

    async def read_object(self, path: str, offset: int = 0, length: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes of a published or staged object from `offset`, `length` of them or all (0); ObjectNotFoundError."""
        with self.errors(f"cannot read {path}"):
            response = await self.run(self.client.get_object, self.name, path, offset=offset, length=length)
            try:
                while block := await self.run(response.read, BLOCK):
                    yield block
            finally:
                response.close()
                response.release_conn()

    def serves(self, origin: ObjectOrigin) -> bool:
        """Return whether this server has an object, and the credentials of this store read it."""
        return (server_of(origin.endpoint, origin.secure), origin.access_key) == self._reader

    def staged(self, path: str, size: int, sha256: str) -> _Staged:
        """Return a complete object: a staged one, or one that is under its key already."""
        return _Staged(self, path, size, sha256)

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore. Each read requests one MiB."""
        return self._open(checked_key(key))

    def _open(self, name: str) -> BinaryIO:
        with self.errors(f"cannot open {name}"):
            size = self.client.stat_object(self.name, name).size or 0
        return cast("BinaryIO", io.BufferedReader(ObjectReader(self, name, size), BLOCK))

    async def local_path(self, key: str, *, size: int | None = None, published: datetime | None = None) -> Path:
        """See ObjectStore. Concurrent callers share one download."""
        return await self._cache.path(key, size)

    async def close(self) -> None:
        """See ObjectStore."""
        await self._cache.close()
        for threads in (self._threads, self._probes):
            threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Callable[..., T], *args: object, **kwargs: object) -> T:
        """Run a blocking call in the threads of the store."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(call, *args, **kwargs))


def server_of(endpoint: str, secure: bool) -> str:
    """Return the address of a server, equal for all ways to write its host and port."""
    _, _, port = endpoint.rpartition("]")[2].partition(":")
    return f"{secure}:{endpoint.lower().removesuffix(f':{port}')}:{port or (443 if secure else 80)}"


class _Staged:
    def __init__(self, store: S3Store, name: str, size: int, sha256: str) -> None:
        self.key = name if is_key(name) else ""
        self._store = store
        self._name = name
        self._size = size
        self._sha256 = sha256
        self._discarded = False

    @property
    def size(self) -> int:
        return self._size

    @property
    def sha256(self) -> str:
        return self._sha256

    def open(self) -> BinaryIO:
        return self._store._open(self._name)

    async def publish(self, key: str) -> ObjectInfo:
        store = self._store
        if self.key not in ("", key):
            raise StoreError(f"{self.key} cannot be published as {key}")
        if not self.key:
            checked_key(key)
            with store.errors(f"cannot publish {key}"):
                await store.run(store.long.copy_object, store.name, key, CopySource(store.name, self._name))
        info = await store.stat(key)
        if info.size != self._size:
            raise StoreUnavailableError(f"{key} was published with {info.size} bytes instead of {self._size}")
        return info

    async def discard(self) -> None:
        if not self._discarded:
            await self._store._staging.discard(self._name)
            self._discarded = True
