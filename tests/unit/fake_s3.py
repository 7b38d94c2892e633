"""A small S3 server in memory: what the store uses of the protocol, and the failures that a test orders.

It keeps whole objects and multipart uploads, answers ranges, copies inside itself, and never checks signatures.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import unquote

from aiohttp import web
from pydantic import SecretStr

from llamesh.kit.source_places import StorePlace
from tests.unit.loopback import ALL_PATHS, serving
from tests.unit.web_objects import answer

TIME = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
XML = "application/xml"


class FakeS3:
    """The server's state; a test looks at it and orders failures through it."""

    access_key = "k"
    secret_key = "s"

    def __init__(self) -> None:
        self.endpoint = ""
        self.buckets: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.digests: dict[str, str] = {}
        """Metadata `sha256` of objects."""
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.upload_keys: dict[str, str] = {}
        """Keys of all uploads that were begun."""
        self.part_time = TIME
        """When parts were written, as ListParts says."""
        self.page = 1000
        """Parts in one answer of ListParts."""
        self.requests: list[tuple[str, str]] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        """HTTP method to the status and S3 code it is answered with."""
        self.refuse_copies: tuple[int, str] | None = None
        """Status and S3 code with which copies of parts are answered; None: they are made."""
        self.copied = 0
        """Bytes of parts that were copied."""
        self.whole_copies: list[str] = []
        """Keys of the objects that were made by a copy of another."""
        self.refused_keys: set[str] = set()
        """Access keys that are answered 403."""
        self.delay: dict[str, float] = {}
        """HTTP method to the seconds after which it is carried out, as a distant server would."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a member that uses it."""
        return {
            "MINIO_ENDPOINT": self.endpoint,
            "MINIO_ACCESS_KEY": self.access_key,
            "MINIO_SECRET_KEY": self.secret_key,
        }

    def place(self) -> StorePlace:
        """The bucket `models` of the server."""
        return StorePlace(
            endpoint=self.endpoint,
            bucket="models",
            access_key=SecretStr(self.access_key),
            secret_key=SecretStr(self.secret_key),
            secure=False,
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        await asyncio.sleep(self.delay.get(request.method, 0.0))
        signature = request.headers.get("Authorization", "") or request.query_string
        if any(f"Credential={key}/" in unquote(signature) for key in self.refused_keys):
            return _error(403, "InvalidAccessKeyId")
        if request.method in self.refuse:
            return _error(*self.refuse[request.method])
        bucket, _, key = request.path.lstrip("/").partition("/")
        if not key:
            return await self._bucket(request, bucket)
        if bucket not in self.buckets:
            return _error(404, "NoSuchBucket")
        if request.query.get("uploadId", "") not in self.uploads.keys() | {""}:
            return _error(404, "NoSuchUpload")
        return await getattr(self, f"_{request.method.lower()}")(request, key)

    async def _bucket(self, request: web.Request, bucket: str) -> web.Response:
        if request.method == "PUT":
            self.buckets.add(bucket)
            return web.Response()
        if "location" in request.query:
            return web.Response(text="<LocationConstraint/>", content_type=XML)
        if bucket not in self.buckets:
            return _error(404, "NoSuchBucket")
        if request.method == "HEAD":
            return web.Response()
        prefix = request.query.get("prefix", "")
        return self._list_uploads(prefix) if "uploads" in request.query else self._list(prefix)

    def _list(self, prefix: str) -> web.Response:
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{TIME:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
            f"<ETag>e</ETag><Size>{len(data)}</Size></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return web.Response(
            text=f"<ListBucketResult><Name>models</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>",
            content_type=XML,
        )

    def _list_uploads(self, prefix: str) -> web.Response:
        entries = "".join(
            f"<Upload><Key>{self.upload_keys[upload]}</Key><UploadId>{upload}</UploadId>"
            f"<Initiated>{TIME:%Y-%m-%dT%H:%M:%S.000Z}</Initiated></Upload>"
            for upload in self.uploads
            # As on MinIO: a prefix finds nothing.
            if prefix in ("", self.upload_keys[upload])
        )
        return web.Response(
            text=f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{entries}</ListMultipartUploadsResult>",
            content_type=XML,
        )

    def _list_parts(self, upload: str, after: int, most: int) -> web.Response:
        numbers = sorted(number for number in self.uploads[upload] if number > after)
        entries = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{hashlib.md5(data).hexdigest()}</ETag>"
            f"<LastModified>{self.part_time:%Y-%m-%dT%H:%M:%S.000Z}</LastModified><Size>{len(data)}</Size></Part>"
            for number, data in ((number, self.uploads[upload][number]) for number in numbers[:most])
        )
        more = "true" if len(numbers) > most else "false"
        marker = numbers[:most][-1] if numbers else 0
        return web.Response(
            text=f"<ListPartsResult><IsTruncated>{more}</IsTruncated>"
            f"<NextPartNumberMarker>{marker}</NextPartNumberMarker>{entries}</ListPartsResult>",
            content_type=XML,
        )

    def _copy(self, request: web.Request, key: str, source: str) -> web.Response:
        name = unquote(source).lstrip("/").partition("/")[2]
        if name not in self.objects:
            return _error(404, "NoSuchKey")
        data = self.objects[name]
        tag = hashlib.md5(data).hexdigest()
        if request.headers.get("x-amz-copy-source-if-match", tag).strip('"') != tag:
            return _error(412, "PreconditionFailed")
        if upload := request.query.get("uploadId"):
            if self.refuse_copies:
                return _error(*self.refuse_copies)
            first, last = map(int, request.headers["x-amz-copy-source-range"].removeprefix("bytes=").split("-"))
            self.uploads[upload][int(request.query["partNumber"])] = data = data[first : last + 1]
            self.copied += len(data)
            tag = hashlib.md5(data).hexdigest()
        else:
            self.objects[key] = data
            self.whole_copies.append(key)
        return web.Response(
            text=f"<CopyObjectResult><ETag>{tag}</ETag><LastModified>{TIME:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
            "</CopyObjectResult>",
            content_type=XML,
        )

    async def _put(self, request: web.Request, key: str) -> web.Response:
        if source := request.headers.get("x-amz-copy-source"):
            return self._copy(request, key, source)
        body = await request.read()
        if upload := request.query.get("uploadId"):
            # It may have been aborted while its bytes came.
            if upload not in self.uploads:
                return _error(404, "NoSuchUpload")
            self.uploads[upload][int(request.query["partNumber"])] = body
        else:
            self.objects[key] = body
        return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    async def _post(self, request: web.Request, key: str) -> web.Response:
        if "uploads" in request.query:
            upload = f"u{len(self.requests)}"
            self.uploads[upload], self.upload_keys[upload] = {}, key
            return web.Response(text=f"<R><UploadId>{upload}</UploadId></R>", content_type=XML)
        numbers = [int(part.findtext("{*}PartNumber", "0")) for part in ET.fromstring(await request.text())]
        parts = self.uploads.pop(request.query["uploadId"])
        self.objects[key] = b"".join(parts[number] for number in numbers)
        return web.Response(text=f"<R><Bucket>b</Bucket><Key>{key}</Key><ETag>e</ETag></R>", content_type=XML)

    async def _delete(self, request: web.Request, key: str) -> web.Response:
        if upload := request.query.get("uploadId"):
            self.uploads.pop(upload, None)
        else:
            self.objects.pop(key, None)
        return web.Response(status=204)

    async def _head(self, request: web.Request, key: str) -> web.Response:
        return await self._get(request, key)

    async def _get(self, request: web.Request, key: str) -> web.Response:
        if upload := request.query.get("uploadId"):
            most = min(int(request.query["max-parts"]), self.page)
            return self._list_parts(upload, int(request.query.get("part-number-marker", "0")), most)
        if key not in self.objects:
            return _error(404, "NoSuchKey")
        data = self.objects[key]
        response = answer(request, data, f'"{hashlib.md5(data).hexdigest()}"')
        response.headers["Last-Modified"] = format_datetime(TIME, usegmt=True)
        if key in self.digests:
            response.headers["x-amz-meta-sha256"] = self.digests[key]
        return response


def _error(status: int, code: str) -> web.Response:
    return web.Response(
        status=status, text=f"<Error><Code>{code}</Code><Message>as ordered</Message></Error>", content_type=XML
    )


@contextmanager
def fake_s3() -> Iterator[FakeS3]:
    """A running server on a free port, in a thread of its own: the client under test blocks."""
    state = FakeS3()
    loop = asyncio.new_event_loop()
    started, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving({ALL_PATHS: state.handle}) as state.endpoint:
            started.set()
            await ended.wait()

    def run() -> None:
        with closing(loop):
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
