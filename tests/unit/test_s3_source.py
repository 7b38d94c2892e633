"""Models of S3 servers: only named places are read, with addresses signed for each request. The server is a stand-in in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llamesh.kit.source_places import S3Place, read_places
from services.download.sources import AddressRules, S3Source, SourceError, SourceObject, SourceRefusedError
from tests.unit.fake_s3 import FakeS3, fake_s3

DATA = b"GGUF" + bytes(range(256)) * 3000
KEY = "dir/a b+c%20d.gguf"


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        server.buckets.add("models")
        server.objects[KEY] = DATA
        yield server


def place(s3: FakeS3, **changes: object) -> S3Place:
    values = {"endpoint": s3.endpoint, "bucket": "models", "access_key": "k", "secret_key": "hidden", "secure": False}
    return S3Place.model_validate(values | changes)


async def fetched(source: S3Source, address: str) -> bytes:
    async with source.open(address) as found:
        return await read(found)


async def read(found: SourceObject) -> bytes:
    return b"".join([chunk async for chunk in found.chunks])


def source(s3: FakeS3, **changes: object) -> S3Source:
    return S3Source(AddressRules(), {"store": place(s3, **changes)})


async def test_an_object_of_a_named_place(s3: FakeS3) -> None:
    s3.digests[KEY] = "AB" * 32
    async with source(s3).open(f"s3://store/{KEY}") as found:
        assert (found.size, found.name, found.sha256) == (len(DATA), "a b+c%20d.gguf", "ab" * 32)
        assert await read(found) == DATA
        assert found.read is not None
        assert b"".join([chunk async for chunk in found.read(5, 70_000)]) == DATA[5:70_005]
    assert {method for method, _ in s3.requests} == {"GET"}, "nothing but the object is asked for"


async def test_each_request_is_signed_for_itself_and_no_key_is_shown(s3: FakeS3) -> None:
    checked = source(s3).check(f"s3://store/{KEY}")
    assert (checked.address, checked.shown, checked.name) == (
        f"s3://store/{KEY}",
        f"s3://store/{KEY}",
        "a b+c%20d.gguf",
    )
    await fetched(source(s3), f"s3://store/{KEY}")
    assert all("X-Amz-Signature=" in path and "hidden" not in path for _, path in s3.requests)


async def test_a_public_bucket_needs_no_credentials(s3: FakeS3) -> None:
    assert await fetched(source(s3, access_key="", secret_key=""), f"s3://store/{KEY}") == DATA
    assert not any("X-Amz" in path for _, path in s3.requests)


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("s3://stor/a.gguf", "did you mean s3://store/a.gguf?"),
        ("s3://other-bucket/a.gguf", "LLAMESH_S3_SOURCES"),
        ("s3:///a.gguf", "no place of models has the name"),
        ("s3://store", "a key of 1 to 1024 bytes"),
        ("s3://store/dir/", "that names a file"),
        ("s3://store/../secrets/a.gguf", "that names a file"),
        ("s3://store/" + "a" * 1025, "1 to 1024 bytes"),
    ],
)
async def test_other_places_and_keys_are_refused_unseen(s3: FakeS3, address: str, hint: str) -> None:
    with pytest.raises(SourceRefusedError) as caught:
        source(s3).check(address)
    assert hint in str(caught.value)
    assert s3.requests == []


async def test_a_refusal_of_the_s3_server_names_the_setting(s3: FakeS3) -> None:
    with pytest.raises(SourceError, match=r"the bucket models has no object none\.gguf"):
        await fetched(source(s3), "s3://store/none.gguf")
    with pytest.raises(SourceError, match="has no bucket nowhere: check LLAMESH_S3_SOURCES, place store"):
        await fetched(source(s3, bucket="nowhere"), f"s3://store/{KEY}")
    s3.refused_keys.add("k")
    with pytest.raises(SourceError, match="refuses the credentials in LLAMESH_S3_SOURCES, place store") as caught:
        await fetched(source(s3), f"s3://store/{KEY}")
    assert "hidden" not in str(caught.value)
    s3.refuse["GET"] = (400, "AuthorizationHeaderMalformed")
    with pytest.raises(SourceError, match="in another region than us-east-1"):
        await fetched(source(s3, access_key="other"), f"s3://store/{KEY}")
    s3.refused_keys.clear()
    s3.refuse["GET"] = (503, "SlowDown")
    with pytest.raises(SourceError, match="answers 503") as busy:
        await fetched(source(s3), f"s3://store/{KEY}")
    assert busy.value.transient


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "not JSON such as"),
        ("[]", "not a JSON object"),
        ('{"A B": {"endpoint": "s3.example.com"}}', "the name of a place"),
        ('{"a": {"access_key": "hidden"}}', "the place a has a wrong or missing field: endpoint"),
        ('{"a": {"endpoint": "s3.example.com", "secret": "hidden"}}', "wrong or missing field: secret"),
        ('{"a": {"endpoint": "https://s3.example.com"}}', "is not host or host:port"),
        ('{"a": {"endpoint": "s3.example.com", "secret_key": "hidden"}}', "needs both"),
        ('{"a": "hidden"}', "the place a has a wrong"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_without_its_values(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_places(text)
    assert "hidden" not in str(caught.value)


def test_a_bucket_is_called_as_its_place_unless_it_is_named() -> None:
    places = read_places(
        '{"one": {"endpoint": "s3.example.com"}, "b": {"endpoint": "s3.example.com:9000", "bucket": "two"}}'
    )
    assert {name: place.bucket for name, place in places.items()} == {"one": "one", "b": "two"}
    assert read_places("") == {}
