"""If source and store are one S3 server, it copies the parts: their bytes are not fetched, and are hashed when they are there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.kit.source_places import S3Place
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import OpenWith, Service, sha256
from tests.contract.download.journal import counted, opened, until
from tests.contract.download.peer_faults import DATA, OTHER, PART
from tests.unit.fake_s3 import FakeS3, fake_s3

KEY = "sub dir/a+b.gguf"
SOURCE = f"s3://models/{KEY}"

OpenCopying = Callable[..., Awaitable[Service]]


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        server.buckets.add("models")
        server.objects[KEY] = DATA
        yield server


@pytest.fixture
def open_copying(s3: FakeS3, one_settings: Settings, open_with: OpenWith) -> OpenCopying:
    """Starts the service with its store on the server; `changes` are of the place of its source there."""

    def start(**changes: Any) -> Awaitable[Service]:
        place = {"endpoint": s3.endpoint, "access_key": s3.access_key, "secret_key": s3.secret_key, "secure": False}
        return open_with(
            one_settings,
            minio_endpoint=s3.endpoint,
            minio_access_key=SecretStr(s3.access_key),
            minio_secret_key=SecretStr(s3.secret_key),
            s3_sources={"models": S3Place.model_validate(place | {"bucket": "models"} | changes)},
            download_part_bytes=PART,
            download_parallel_parts=2,
        )

    return start


async def only(s3: FakeS3, service: Service, *objects: bytes) -> bool:
    """Wait until the store has these objects beside the source's, and nothing else."""

    async def settled() -> bool:
        mine = {key: data for key, data in s3.objects.items() if key != KEY}
        published = sorted(mine.values()) == sorted(objects) and all(key.startswith("models/") for key in mine)
        return published and not s3.uploads and await counted(database) == (0, 0)

    async with opened(service.settings) as database:
        await until(settled)
    return True


async def test_a_model_of_the_same_server_is_copied_by_it(s3: FakeS3, open_copying: OpenCopying) -> None:
    service = await open_copying()
    found = await service.fetched("m1", SOURCE)
    assert (found.state, found.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert (found.sha256, found.bytes_done, found.bytes_total) == (sha256(DATA), len(DATA), len(DATA))
    assert s3.copied == len(DATA)
    assert await only(s3, service, DATA)


@pytest.mark.parametrize("refusal", [(403, "AccessDenied"), (501, "NotImplemented")])
async def test_a_server_that_copies_nothing_is_read(
    s3: FakeS3, open_copying: OpenCopying, refusal: tuple[int, str]
) -> None:
    s3.refuse_copies = refusal
    service = await open_copying()
    found = await service.fetched("m1", SOURCE)
    assert (found.state, found.sha256, s3.copied) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(DATA), 0)
    assert await only(s3, service, DATA)


async def test_other_credentials_read_the_source(s3: FakeS3, open_copying: OpenCopying) -> None:
    service = await open_copying(access_key="theirs", secret_key="theirs")
    found = await service.fetched("m1", SOURCE)
    assert (found.state, found.sha256, s3.copied) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(DATA), 0)


async def test_a_digest_that_the_copy_has_not_leaves_nothing(s3: FakeS3, open_copying: OpenCopying) -> None:
    """What the metadata of an object says of its digest is not believed."""
    s3.digests[KEY] = sha256(OTHER)
    service = await open_copying()
    found = await service.fetched("m1", SOURCE)
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "CONTENT_MISMATCH")
    assert s3.copied == len(DATA)
    assert await only(s3, service)


async def test_an_object_that_is_replaced_is_copied_anew(
    s3: FakeS3, open_copying: OpenCopying, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await open_copying()
    copy, copies = s3._copy, []

    def replaced(request: Any, key: str, source: str) -> Any:
        copies.append(key)
        if len(copies) == 2:
            s3.objects[KEY] = OTHER
        return copy(request, key, source)

    monkeypatch.setattr(s3, "_copy", replaced)
    found = await service.fetched("m1", SOURCE)
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(OTHER))
    assert await only(s3, service, OTHER)


async def test_a_copy_goes_on_after_a_restart(
    s3: FakeS3,
    open_copying: OpenCopying,
    stop_member: Callable[[Any], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = await open_copying()
    copy = s3._copy
    monkeypatch.setattr("services.download.staging.parts_at_once", lambda *_: 1)

    def first_only(request: Any, key: str, source: str) -> Any:
        if s3.copied:
            raise ConnectionResetError
        return copy(request, key, source)

    monkeypatch.setattr(s3, "_copy", first_only)
    await service.start("m1", SOURCE)
    async with opened(service.settings) as database:

        async def recorded() -> bool:
            return (await counted(database))[1] == 1

        await until(recorded)
    await stop_member(service.member)
    monkeypatch.setattr(s3, "_copy", copy)
    service = await open_copying()
    found = await service.state("m1")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(DATA))
    assert s3.copied == len(DATA), "no part was copied twice"
    assert await only(s3, service, DATA)
