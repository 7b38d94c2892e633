"""Models of registries: tokens, credentials and redirects go where they may, and bytes are those of the digest. The registry is a FAKE."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from llamesh.kit.source_places import RegistryPlace, read_registries
from services.download.sources import (
    AddressRules,
    FileRole,
    RegistrySource,
    SourceChangedError,
    SourceError,
    SourceObject,
    SourceRefusedError,
)
from services.download.sources.registry_client import MAX_TAGS_BYTES
from services.download.sources.registry_manifests import MAX_MANIFEST_BYTES
from services.download.sources.registry_tokens import MAX_TOKEN_ANSWER, Challenge, read_challenge
from tests.unit.fake_registry import (
    INDEX,
    OLLAMA_MODEL,
    ORAS_DEFAULT,
    FakeRegistry,
    Repository,
    digest,
    fake_registry,
    tar_of,
    titled,
)

MODEL = b"GGUF-model" * 1000
LOGIN = ("ada", "right-secret")
OPEN = RegistryPlace(secure=False)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with fake_registry() as state:
        state.push("ada/model", "v1", [(OLLAMA_MODEL, MODEL)])
        yield state


@pytest.fixture
async def other() -> AsyncIterator[FakeRegistry]:
    async with fake_registry() as state:
        yield state


def source(registry: FakeRegistry, place: RegistryPlace = OPEN) -> RegistrySource:
    return RegistrySource(AddressRules(), {registry.host: place}, registry.url)


def with_login(**fields: str) -> RegistryPlace:
    return RegistryPlace(secure=False, username=LOGIN[0], password=SecretStr(LOGIN[1]), **fields)


def at(registry: FakeRegistry, rest: str = ":v1") -> str:
    return f"oci://{registry.host}/ada/model{rest}"


async def read(found: SourceObject) -> bytes:
    return b"".join([chunk async for chunk in found.chunks])


async def fetched(registry: FakeRegistry, place: RegistryPlace = OPEN, rest: str = ":v1") -> bytes:
    async with source(registry, place).open(at(registry, rest)) as found:
        return await read(found)


async def test_a_file_comes_with_size_digest_and_revision(registry: FakeRegistry) -> None:
    async with source(registry).open(at(registry)) as found:
        assert (found.name, found.size) == ("model:v1.gguf", len(MODEL))
        assert found.sha256 == hashlib.sha256(MODEL).hexdigest()
        assert f"sha256:{found.revision}" == registry.repositories["ada/model"].tags["v1"]
        assert await read(found) == MODEL


async def test_ranges_are_of_the_digest_whatever_the_etag_of_each_server(registry: FakeRegistry) -> None:
    async with source(registry).open(at(registry)) as found:
        registry.etag = '"of another server"'
        assert found.read is not None
        assert b"".join([chunk async for chunk in found.read(7, 100)]) == MODEL[7:107]
        assert found.etag == f'"{digest(MODEL)}"'


async def test_files_are_pinned_and_have_their_roles(registry: FakeRegistry) -> None:
    kinds = ("adapter", "model", "projector", "adapter")
    layers = [(f"application/vnd.ollama.image.{kind}", bytes([number])) for number, kind in enumerate(kinds)]
    pinned = registry.push("ada/model", "v2", [*layers])
    sources = source(registry)
    files = await sources.files("ollama:ada/model:v2")
    assert [(file.role, file.name) for file in files] == [
        (FileRole.WEIGHTS, ""),
        (FileRole.PROJECTOR, ""),
        (FileRole.ADAPTER, "adapter"),
        (FileRole.ADAPTER, "adapter-2"),
    ]
    assert all(file.address.startswith(f"ollama:ada/model@{pinned}#sha256:") for file in files)
    registry.push("ada/model", "v2", [(OLLAMA_MODEL, MODEL)])
    async with sources.open(files[3].address) as found:
        assert await read(found) == bytes([3])
    asked = len(registry.asked)
    await sources.files(f"ollama:ada/model@{pinned}")
    assert len(registry.asked) == asked, "the manifest of a digest is kept"


async def test_an_index_of_one_model_is_followed(registry: FakeRegistry) -> None:
    tagged = registry.repositories["ada/model"].tags["v1"]
    registry.put("ada/model", "all", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(tagged)]})
    (file,) = await source(registry).files(at(registry, ":all"))
    assert f"@{tagged}#" in file.address
    nested = registry.repositories["ada/model"].tags["all"]
    registry.put("ada/model", "nested", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(nested)]})
    with pytest.raises(SourceError, match="does not answer like a registry of models"):
        await source(registry).files(at(registry, ":nested"))


async def test_the_first_bytes_say_what_a_file_is_that_was_pushed_without_a_type(registry: FakeRegistry) -> None:
    registry.push("ada/model", "v2", [(ORAS_DEFAULT, MODEL, titled("m.gguf"))])
    before = len(registry.asked)
    async with source(registry).open(at(registry, ":v2")) as found:
        assert (found.name, await read(found)) == ("m.gguf", MODEL)
    paths = [path.partition("?")[0].split("/")[-2] for path, _ in registry.asked[before:]]
    assert paths == ["manifests", "blobs", "model"], "no request more than for any other file"
    async with source(registry).open(at(registry, ":v2")) as found:
        found.end_stream()
        assert found.read is not None
        assert b"".join([chunk async for chunk in found.read(0, 9)]) == MODEL[:9]


@pytest.mark.parametrize(
    "data", [tar_of("m.gguf", MODEL), gzip.compress(MODEL), b"GGU", b""], ids=["tar", "gzip", "short", "empty"]
)
async def test_a_file_without_a_type_that_is_no_gguf_file_is_refused_with_the_remedy(
    registry: FakeRegistry, data: bytes
) -> None:
    registry.push("ada/model", "v2", [(ORAS_DEFAULT, data, titled("m.gguf"))])
    with pytest.raises(
        SourceRefusedError, match=r"push the file itself, as m\.gguf:application/octet-stream"
    ) as refused:
        await fetched(registry, rest=":v2")
    assert refused.value.rule == "format"


def entry(of: str) -> dict[str, object]:
    return {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": of, "size": 9}


async def test_one_token_serves_all_reads_of_a_repository_until_it_ends(registry: FakeRegistry) -> None:
    registry.asks = "bearer"
    sources = source(registry)
    for address in await sources.files(at(registry)), await sources.files(at(registry)):
        async with sources.open(address[0].address) as found:
            assert await read(found) == MODEL
    assert len(registry.tokens) == 1
    registry.tokens.clear()
    async with sources.open(at(registry)) as found:
        assert await read(found) == MODEL


async def test_a_range_is_read_with_a_new_token_once_the_first_has_ended(registry: FakeRegistry) -> None:
    registry.asks = "bearer"
    async with source(registry).open(at(registry)) as found:
        registry.tokens.clear()
        assert found.read is not None
        assert b"".join([chunk async for chunk in found.read(7, 100)]) == MODEL[7:107]
    assert len([path for path, _ in registry.asked if path.startswith("/token")]) == 2


async def test_a_token_of_one_repository_is_not_sent_for_another(registry: FakeRegistry) -> None:
    registry.asks = "bearer"
    registry.push("bob/model", "v1", [(OLLAMA_MODEL, MODEL)])
    sources = source(registry)
    await sources.files(at(registry))
    await sources.files(f"oci://{registry.host}/bob/model:v1")
    sent = {token for path, token in registry.asked if path.startswith("/v2/bob/")}
    assert sent == {"", "Bearer token-1"}


@pytest.mark.parametrize("asks", ["basic", "bearer"])
async def test_credentials_go_to_the_registry_itself(registry: FakeRegistry, asks: str) -> None:
    registry.asks, registry.login = asks, LOGIN
    assert await fetched(registry, with_login()) == MODEL
    with pytest.raises(SourceError, match="names credentials for") as refused:
        await fetched(registry)
    assert LOGIN[1] not in str(refused.value)


async def test_credentials_go_to_no_token_service_that_the_operator_did_not_name(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    registry.asks, registry.realm = "bearer", "https://127.0.0.1:1/token"
    with pytest.raises(SourceRefusedError, match="which gets no credentials") as refused:
        await fetched(registry, with_login())
    assert refused.value.rule == "realm"
    registry.realm, other.login = f"{other.url}/token", LOGIN
    registry.tokens = other.tokens
    # The token service checks the name of the service in the request, which is the registry's.
    served, other.host = other.host, registry.host
    assert await fetched(registry, with_login(token_server=f"http://{served}")) == MODEL
    assert any(token.startswith("Basic ") for _, token in other.asked)


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/token",
        "https://10.0.0.1/token",
        "https://localhost/token",
        "ftp://models.example/token",
        "x",
    ],
)
async def test_a_token_service_is_checked_like_a_redirect(registry: FakeRegistry, realm: str) -> None:
    registry.asks, registry.realm = "bearer", realm
    with pytest.raises(SourceRefusedError):
        await fetched(registry)


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest", "https://10.0.0.1/model.gguf", "file:///etc/passwd", "https://u:p@x.example/"],
)
async def test_a_redirect_of_a_blob_is_checked_like_any_address(registry: FakeRegistry, location: str) -> None:
    registry.redirect = location
    with pytest.raises(SourceRefusedError):
        await fetched(registry)


async def test_no_token_follows_a_redirect_to_another_host(registry: FakeRegistry, other: FakeRegistry) -> None:
    registry.asks = "bearer"
    other.repositories["ada/model"] = Repository({digest(MODEL): MODEL})
    registry.redirect = f"{other.url}/cdn/ada/model/{digest(MODEL)}"
    assert await fetched(registry, RegistryPlace(secure=False, token_server=other.url)) == MODEL
    assert [token for _, token in other.asked] == [""]


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "Registry-1.docker.io"])
def test_docker_hub_may_be_named_as_in_dockers_own_configuration(name: str) -> None:
    (host, place) = next(iter(read_registries(json.dumps({name: {"username": "u", "password": "p"}})).items()))
    assert (host, place.username) == ("docker.io", "u")
    with pytest.raises(ValueError, match="named twice"):
        read_registries(json.dumps({name: {}, "hub.docker.com": {}}))


async def test_a_registry_that_nobody_named_is_public_and_has_tls(registry: FakeRegistry) -> None:
    sources = RegistrySource(AddressRules(), {}, registry.url)
    for host in ("127.0.0.1", "localhost:5000", "10.0.0.1:5000", "[::1]:5000"):
        with pytest.raises(SourceRefusedError, match="not one of the public internet"):
            await sources.files(f"oci://{host}/ada/model")


@pytest.mark.parametrize(
    "answer", [{}, [], {"token": 7}, {"token": "a b\r\n"}, {"token": "t" * (MAX_TOKEN_ANSWER + 1)}, "x"]
)
async def test_a_token_service_that_gives_no_token_is_said_to(registry: FakeRegistry, answer: object) -> None:
    registry.asks, registry.token_answer = "bearer", answer
    with pytest.raises(SourceError, match=r"the token service .* answers"):
        await fetched(registry)


async def test_manifests_and_lists_of_tags_are_bounded(registry: FakeRegistry) -> None:
    registry.put("ada/model", "large", b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(SourceError, match=f"more than {MAX_MANIFEST_BYTES} bytes"):
        await fetched(registry, rest=":large")
    for number in range(MAX_TAGS_BYTES // 128 + 1):
        registry.repositories["ada/model"].tags[f"{number:0128}"] = "sha256:0"
    with pytest.raises(SourceError, match=f"there is no oci://{registry.host}/ada/model:v$"):
        await fetched(registry, rest=":v")


async def test_a_manifest_of_another_digest_is_refused(registry: FakeRegistry) -> None:
    wanted = digest(b"other")
    registry.repositories["ada/model"].manifests[wanted] = b'{"schemaVersion": 2, "layers": []}'
    with pytest.raises(SourceChangedError, match=f"another manifest than {wanted}"):
        await fetched(registry, rest=f"@{wanted}")


async def test_another_size_than_in_the_manifest_is_a_change(registry: FakeRegistry) -> None:
    registry.repositories["ada/model"].blobs[digest(MODEL)] = MODEL + b"x"
    with pytest.raises(SourceChangedError, match=f"its manifest says {len(MODEL)}"):
        await fetched(registry)


async def test_what_is_not_there_is_named(registry: FakeRegistry) -> None:
    registry.repositories["ada/model"].blobs.clear()
    for rest, words in (
        (f"@{registry.repositories['ada/model'].tags['v1']}", "no bytes of its file"),
        (f"@sha256:{'0' * 64}", "has no manifest sha256:000"),
        (f":v1#sha256:{'0' * 64}", "has no GGUF file sha256:000"),
    ):
        with pytest.raises(SourceError, match=words):
            await fetched(registry, rest=rest)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (['Bearer realm="https://a/b",service="s",scope="x"'], Challenge("bearer", "https://a/b", "s")),
        (["bearer service=s, realm=https://a/b"], Challenge("bearer", "https://a/b", "s")),
        (["Negotiate", 'Basic realm="x"'], Challenge("basic")),
        (["Bearer"], None),
        (["Bearerx realm=y"], None),
        ([], None),
        (['Bearer realm="' + "a" * 100_000], None),
    ],
)
def test_challenges_are_read(headers: list[str], found: Challenge | None) -> None:
    assert read_challenge(headers) == found
