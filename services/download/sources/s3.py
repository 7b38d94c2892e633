"""Models from the S3 servers that the operator named in LLAMESH_S3_SOURCES: `s3://NAME/KEY`.

Each request gets a signed address of its own, computed locally. Invariant: only the configured buckets are read, with their own
credentials; a caller's text decides only the key. The server may be private; a redirect to another host is checked like any address.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

from minio import Minio
from yarl import URL

from llamesh.kit.objects import ObjectOrigin
from llamesh.kit.objects.s3_errors import DENIED_CODES
from llamesh.kit.source_places import S3Place
from llamesh.nearest import nearest
from services.download.sources.addresses import AddressRules
from services.download.sources.http_client import SourceAnswerError, service_client
from services.download.sources.http_objects import HttpObjects
from services.download.sources.named_parts import NamedParts
from services.download.sources.object_names import MAX_NAME_BYTES, is_usable
from services.download.sources.source import (
    CheckedSource,
    SourceError,
    SourceObject,
    SourceRefusedError,
)

_SIGNED_FOR = timedelta(minutes=15)
"""Lifetime of a signed address. It is used at once; the rest is a margin for a clock that differs."""
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_OTHER_REGION = {
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
"""Error codes of S3 for a signature for the wrong region."""


class S3Bucket:
    """Opens the objects of one place. `setting` is the name of the setting with the credentials, for messages."""

    def __init__(self, rules: AddressRules, place: S3Place, setting: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._place = place
        self._setting = setting
        self._signer = Minio(
            place.endpoint,
            access_key=place.access_key.get_secret_value() or None,
            secret_key=place.secret_key.get_secret_value() or None,
            secure=place.secure,
            # With a region, signing an address needs no request.
            region=place.region,
        )
        address = f"{'https' if place.secure else 'http'}://{place.endpoint}"
        self._client = service_client(rules, address, tls=tls)
        self._objects = HttpObjects(self._client, digest_header="x-amz-meta-sha256")

    @asynccontextmanager
    async def open(self, key: str, *, bucket: str = "") -> AsyncIterator[SourceObject]:
        """Open an object. `bucket` replaces the bucket of the place. Raises SourceError."""
        bucket = bucket or self._place.bucket

        def locate() -> URL:
            try:
                address = self._signer.get_presigned_url("GET", bucket, key, _SIGNED_FOR)
            except ValueError as error:
                raise SourceError(f"{bucket[:100]!r} is not a valid bucket name") from error
            return self._client.parsed(address)

        try:
            async with self._objects.open(locate, key.rpartition("/")[2]) as found:
                yield replace(found, origin=self._origin(bucket, key, found.etag) if found.read else None)
        except SourceAnswerError as error:
            raise self._explained(error, bucket, key) from error

    def _origin(self, bucket: str, key: str, etag: str) -> ObjectOrigin:
        place = self._place
        return ObjectOrigin(place.endpoint, place.secure, place.access_key.get_secret_value(), bucket, key, etag)

    def _explained(self, error: SourceAnswerError, bucket: str, key: str) -> SourceError:
        found = _CODE.search(error.body)
        code = found[1].decode() if found else ""
        if code == "NoSuchBucket":
            words = f"{self._place.endpoint} has no bucket {bucket}: check {self._setting}"
        elif code == "NoSuchKey" or (error.status == 404 and code not in DENIED_CODES):
            words = f"the bucket {bucket} has no object {key}"
        elif code in _OTHER_REGION:
            words = f"the bucket {bucket} is in another region than {self._place.region}: correct {self._setting}"
        elif code == "RequestTimeTooSkewed":
            words = f"the clock of this machine differs too much from that of {self._place.endpoint}"
        elif error.status in {401, 403} or code in DENIED_CODES:
            words = f"{self._place.endpoint} refuses the credentials in {self._setting} ({code or error.status})"
        else:
            return error
        return SourceError(words, status=error.status)


class S3Source(NamedParts):
    """Reads the objects of named places."""

    def __init__(
        self, rules: AddressRules, places: Mapping[str, S3Place], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._buckets = {
            name: S3Bucket(rules, place, f"LLAMESH_S3_SOURCES, place {name}", tls=tls) for name, place in places.items()
        }

    def check(self, source: str) -> CheckedSource:
        """See Source. The key is used as the server stores it, without escaping."""
        _, key = self._parts(source)
        return CheckedSource(source, source, key.rpartition("/")[2])

    @asynccontextmanager
    async def open(self, source: str) -> AsyncIterator[SourceObject]:
        """See Source."""
        bucket, key = self._parts(source)
        async with bucket.open(key) as found:
            yield found

    def _parts(self, source: str) -> tuple[S3Bucket, str]:
        name, _, key = source.removeprefix("s3:").removeprefix("//").partition("/")
        bucket = self._buckets.get(name)
        if bucket is None:
            meant = nearest(name, self._buckets)
            hint = (
                f"did you mean s3://{meant}/{key}?" if meant else "an administrator names places in LLAMESH_S3_SOURCES"
            )
            raise SourceRefusedError(f"no place of models has the name {name!r}: {hint}", rule="place")
        check_key(key)
        return bucket, key


def check_key(key: str) -> None:
    """Raise SourceRefusedError unless the key can be the key of a model's file."""
    if not key or key.endswith("/") or {".", ".."} & set(key.split("/")) or not is_usable(key):
        raise SourceRefusedError(
            f"an object is s3://NAME/KEY, with a key of 1 to {MAX_NAME_BYTES} bytes without control characters that names a file",
            rule="key",
        )
