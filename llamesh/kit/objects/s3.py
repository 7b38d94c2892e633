"""An object store behind S3's protocol: MinIO or any other server that speaks it.

A staged object is an ordinary object under `staging/`, which `scan` and the key pattern keep out of sight; publishing
is a copy inside the server, which S3 makes visible in one step, so no byte passes here twice. The `minio` client
blocks, hence every call runs in this store's own threads: a long upload must not use up the loop's default ones.
"""

import asyncio
import contextlib
import functools
import hashlib
import io
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.error import InvalidResponseError, S3Error, ServerError

from llamesh.kit.logs import log
from llamesh.kit.objects.directory import StagingFile, blocks, store_errors, sweep
from llamesh.kit.objects.store import (
    ObjectDamagedError,
    ObjectInfo,
    ObjectNotFoundError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    checked_key,
    digest_of,
)

_STAGING = "staging/"
_BLOCK = 1 << 20
_MIN_PART = 16 << 20
_MAX_PARTS = 9_000
_STALE = timedelta(hours=24)
_THREADS = 8

_MISSING_CODES = {"NoSuchKey", "NoSuchObject", "NoSuchBucket", "NotFound", "ResourceNotFound"}
_FULL_CODES = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
_DENIED_CODES = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"}

T = TypeVar("T")


@contextlib.contextmanager
def _s3_errors(what: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        reason = f"{what}: {error.code}: {error.message}"
        if error.code in _MISSING_CODES:
            raise ObjectNotFoundError(reason) from error
        if error.code in _FULL_CODES:
            raise StoreFullError(reason) from error
        if error.code in _DENIED_CODES:
            raise StoreDeniedError(
                f"{what}: the object store refuses MINIO_ACCESS_KEY and MINIO_SECRET_KEY ({error.code})"
            ) from error
        raise StoreUnavailableError(reason) from error
    except ServerError as error:
        raise StoreUnavailableError(f"{what}: the object store answers with HTTP status {error.status_code}") from error
    except InvalidResponseError as error:
        raise StoreUnavailableError(f"{what}: what answers at MINIO_ENDPOINT does not speak S3") from error
    except urllib3.exceptions.HTTPError as error:
        raise StoreUnavailableError(f"{what}: the object store {_transport_words(error)}") from error


def _transport_words(error: BaseException) -> str:
    """What went wrong on the way to the store, without the words and addresses of the HTTP library."""
    cause: object = error
    while isinstance(cause, urllib3.exceptions.MaxRetryError) and cause.reason is not None:
        cause = cause.reason
    match cause:
        case urllib3.exceptions.SSLError():
            return "does not speak TLS as MINIO_SECURE and its certificate ask for"
        case urllib3.exceptions.NameResolutionError():
            return "has a name that cannot be resolved: check MINIO_ENDPOINT"
        case urllib3.exceptions.NewConnectionError():
            return "cannot be reached: it is stopped, or MINIO_ENDPOINT is wrong"
        case urllib3.exceptions.TimeoutError():
            return "does not answer in time"
        case urllib3.exceptions.ResponseError():
            return "answers with a failure each time"
        case _:
            return "broke the connection off"


class S3Store:
    """Objects in one bucket; local copies for engines below `cache_directory`."""

    def __init__(
        self,
        *,
        endpoint: str,
        bucket: str,
        secure: bool,
        access_key: str | None,
        secret_key: str | None,
        cache_directory: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bucket = bucket
        self._clock = clock
        self._cache = cache_directory.absolute()
        self._cache_staging = self._cache / "staging"
        self._fetches: dict[str, asyncio.Task[Path]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        self._client = Minio(
            endpoint,
            access_key=access_key,
            secret_key=secret_key,
            secure=secure,
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=5, read=300),
                maxsize=_THREADS,
                retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
                cert_reqs="CERT_REQUIRED",
                ca_certs=certifi.where(),
            ),
        )

    async def prepare(self) -> None:
        """See ObjectStore. Staged objects count as left behind after 24 hours: S3 cannot tell a dead writer."""
        with _s3_errors(f"cannot use bucket {self._bucket}"):
            await self._run(self._prepare)

    def _prepare(self) -> None:
        self._check()
        with store_errors("cannot use the cache of the object store"):
            sweep(self._cache_staging)
        for staged in self._client.list_objects(self._bucket, prefix=_STAGING, recursive=True):
            if staged.object_name and staged.last_modified and self._clock() - staged.last_modified > _STALE:
                self._client.remove_object(self._bucket, staged.object_name)

    async def check(self) -> None:
        """See ObjectStore."""
        with _s3_errors(f"cannot use bucket {self._bucket}"):
            await self._run(self._check)

    def _check(self) -> None:
        if not self._client.bucket_exists(self._bucket):
            log.warning("the bucket is missing: it is made", bucket=self._bucket)
            self._client.make_bucket(self._bucket)

    async def stage(self, chunks: AsyncIterator[bytes], *, expected_size: int | None = None) -> "_Staged":
        """See ObjectStore. Uploads part after part; a failure or cancellation aborts the multipart upload."""
        with _s3_errors("cannot write to the object store"):
            await self._run(self._check)
        name = f"{_STAGING}{secrets.token_hex(16)}"
        part_size = max(_MIN_PART, (expected_size or 0) // _MAX_PARTS)
        source = _Pull(blocks(chunks), asyncio.get_running_loop())
        upload = asyncio.ensure_future(
            self._run(
                self._client.put_object,
                self._bucket,
                name,
                cast("BinaryIO", source),
                length=-1,
                part_size=part_size,
                num_parallel_uploads=1,
            )
        )
        try:
            with _s3_errors("cannot write to the object store"):
                await asyncio.shield(upload)
        except asyncio.CancelledError:
            source.abort()
            with contextlib.suppress(Exception, FutureCancelledError):
                await upload
            # The upload may have been past its last read when the cancellation came.
            with contextlib.suppress(Exception):
                await self._run(self._client.remove_object, self._bucket, name)
            raise
        return _Staged(self, name, source.size, source.sha256)

    async def stat(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        with _s3_errors(f"cannot look up {key}"):
            found = await self._run(self._client.stat_object, self._bucket, checked_key(key))
        return ObjectInfo(key=key, size=found.size or 0, modified=found.last_modified or self._clock())

    async def delete(self, key: str) -> None:
        """See ObjectStore. The local copy goes too."""
        with _s3_errors(f"cannot delete {key}"):
            await self._run(self._client.remove_object, self._bucket, checked_key(key))
        (self._cache / key).unlink(missing_ok=True)

    async def scan(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """See ObjectStore."""
        with _s3_errors("cannot list objects"):
            page = await self._run(self._list, prefix)
        for info in page:
            yield info

    def _list(self, prefix: str) -> list[ObjectInfo]:
        found = []
        for entry in self._client.list_objects(self._bucket, prefix=prefix or None, recursive=True):
            with contextlib.suppress(ValueError):
                key = checked_key(entry.object_name or "")
                found.append(ObjectInfo(key=key, size=entry.size or 0, modified=entry.last_modified or self._clock()))
        return found

    async def read(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See ObjectStore."""
        if length == 0:
            return
        with _s3_errors(f"cannot read {key}"):
            response = await self._run(
                self._client.get_object, self._bucket, checked_key(key), offset=offset, length=length or 0
            )
            try:
                while block := await self._run(response.read, _BLOCK):
                    yield block
            finally:
                response.close()
                response.release_conn()

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore. Reads by ranges of one MiB."""
        return self._open(checked_key(key))

    def _open(self, name: str) -> BinaryIO:
        with _s3_errors(f"cannot open {name}"):
            size = self._client.stat_object(self._bucket, name).size or 0
        return cast("BinaryIO", io.BufferedReader(_Ranges(self._client, self._bucket, name, size), _BLOCK))

    async def local_path(self, key: str, *, size: int | None = None, published: datetime | None = None) -> Path:
        """See ObjectStore. Downloads once however many ask; the copy appears only when its digest is the key's."""
        target = self._cache / checked_key(key)
        present = await asyncio.to_thread(_size_of, target)
        if present is not None and size in (None, present):
            return target
        if present is not None:
            log.warning("a local copy has the wrong length: it is fetched again", path=str(target), bytes=present)
            target.unlink(missing_ok=True)
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(key, target))
            self._fetches[key] = fetch
            fetch.add_done_callback(lambda _: self._fetches.pop(key, None))
        return await asyncio.shield(fetch)

    async def _fetch(self, key: str, target: Path) -> Path:
        with store_errors(f"cannot write {key} to the cache"):
            file = StagingFile(self._cache_staging)
            try:
                async for block in self.read(key):
                    await asyncio.to_thread(file.write, block)
                if file.sha256 != digest_of(key):
                    raise ObjectDamagedError(f"{key} is damaged: its bytes have SHA-256 {file.sha256}")
                await asyncio.to_thread(file.publish, target)
            finally:
                await asyncio.to_thread(file.discard)
        return target

    async def close(self) -> None:
        """See ObjectStore."""
        for fetch in list(self._fetches.values()):
            fetch.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, call: Callable[..., T], *args: object, **kwargs: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(call, *args, **kwargs))


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


class _Staged:
    def __init__(self, store: S3Store, name: str, size: int, sha256: str) -> None:
        self._store = store
        self._name = name
        self._size = size
        self._sha256 = sha256

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
        source = CopySource(store._bucket, self._name)
        with _s3_errors(f"cannot publish {key}"):
            await store._run(store._client.copy_object, store._bucket, checked_key(key), source)
        info = await store.stat(key)
        if info.size != self._size:
            raise StoreUnavailableError(f"{key} was published with {info.size} bytes instead of {self._size}")
        return info

    async def discard(self) -> None:
        store = self._store
        with _s3_errors("cannot remove a staged object"):
            await store._run(store._client.remove_object, store._bucket, self._name)


class _Pull:
    """The blocking `read` that an uploading thread calls, fed by an asynchronous iterator on the loop."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks = chunks
        self._loop = loop
        self._left = b""
        self._hash = hashlib.sha256()
        self._pulling: asyncio.Task[bytes] | None = None
        self._aborted = False
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end. Raises what the iterator raises."""
        parts = [self._left]
        have = len(self._left)
        while have < size:
            block = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
            if not block:
                break
            self._hash.update(block)
            self.size += len(block)
            parts.append(block)
            have += len(block)
        data = b"".join(parts)
        self._left = data[size:]
        return data[:size]

    async def _next(self) -> bytes:
        # Runs on the loop like `abort`: whichever comes first, the other sees it.
        if self._aborted:
            raise StoreError("the upload was cancelled")
        self._pulling = asyncio.current_task()
        return await anext(self._chunks, b"")

    def abort(self) -> None:
        """Make the waiting and every later `read` fail."""
        self._aborted = True
        if self._pulling is not None:
            self._pulling.cancel()


class _Ranges(io.RawIOBase):
    """A seekable view of one object; each read is one ranged request."""

    def __init__(self, client: Minio, bucket: str, name: str, size: int) -> None:
        self._client = client
        self._bucket = bucket
        self._name = name
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        with _s3_errors(f"cannot read {self._name}"):
            response = self._client.get_object(self._bucket, self._name, offset=self._position, length=length)
            try:
                data = response.read()
            finally:
                response.close()
                response.release_conn()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
