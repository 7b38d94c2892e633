"""Downloads from a FAKE registry: of Ollama's kind and of the OCI kind, verified against the manifest's digests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.kit.source_places import RegistryPlace
from llamesh.v1 import download_pb2 as pb
from llamesh.v1.model_pb2 import ModelSourceKind
from tests.contract.download.conftest import TINY, OpenWith, Service, sha256
from tests.contract.model_source import model_bytes
from tests.contract.rich_status import refused
from tests.split_models import adapter_bytes, projector_bytes
from tests.unit.fake_registry import (
    DOCKER_MODEL,
    OLLAMA_MODEL,
    ORAS_DEFAULT,
    FakeRegistry,
    digest,
    fake_registry,
    tar_of,
    titled,
)
from tests.unit.gguf_bytes import File

LARGE = model_bytes("large", 3 << 20)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with fake_registry() as state:
        state.push("library/tiny", "135m", [(OLLAMA_MODEL, LARGE), ("application/vnd.ollama.image.params", b"{}")])
        state.push("library/tiny", "latest", [(OLLAMA_MODEL, TINY)])
        state.push("ada/model", "v1", [(DOCKER_MODEL, LARGE)])
        yield state


@pytest.fixture
async def service(registry: FakeRegistry, one_settings: Settings, open_with: OpenWith) -> Service:
    place = RegistryPlace(secure=False, username="ada", password=SecretStr("registry-secret"))
    return await open_with(one_settings, ollama_registry=registry.url, oci_registries={registry.host: place})


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("ollama:tiny:135m", "ollama:tiny:135m"),
        ("ollama.com/library/tiny:135m", "ollama:tiny:135m"),
        ("ollama:ada/model:v1", "ollama:ada/model:v1"),
        ("oci://HOST/ada/model:v1", "oci://HOST/ada/model:v1"),
    ],
)
async def test_a_model_comes_from_a_registry(
    registry: FakeRegistry, service: Service, address: str, source: str
) -> None:
    download = await service.fetched("m1", address.replace("HOST", registry.host))
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert (download.sha256, download.name) == (sha256(LARGE), "/".join(source.split("/")[-1:]).replace("ollama:", ""))
    model = await service.model("m1")
    assert model.source == source.replace("HOST", registry.host)
    repository = registry.repositories["ada/model" if "ada" in source else "library/tiny"]
    (pushed,) = [digest for tag, digest in repository.tags.items() if tag in ("135m", "v1")]
    assert f"sha256:{model.revision}" == pushed
    assert (await service.path("m1")).read_bytes() == LARGE


async def test_projector_adapter_and_facts_come_with_their_model(registry: FakeRegistry, service: Service) -> None:
    model, projector, adapter = File().build(), projector_bytes(), adapter_bytes()
    kinds = {
        "license": b"\n   Apache License\n   Version 2.0\n\nterms",
        "adapter": adapter,
        "template": b"{{ if .Tools }}x{{ end }}",
        "model": model,
        "projector": projector,
    }
    registry.push("ada/eyes", "v1", [(f"application/vnd.ollama.image.{kind}", data) for kind, data in kinds.items()])
    download = await service.fetched("m1", "ollama:ada/eyes:v1")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    found = await service.model("m1")
    assert [(file.name, file.sha256) for file in found.files] == [
        ("eyes.gguf", sha256(model)),
        ("mmproj-eyes.gguf", sha256(projector)),
        ("adapter", sha256(adapter)),
    ]
    facts = found.source_facts
    assert (facts.license, facts.chat_template_language, facts.chat_template_has_tools) == (
        "Apache License Version 2.0",
        "go",
        True,
    )
    adapters = [pb.AdapterSource(name="style", source=f"ollama:ada/eyes:v1#sha256:{sha256(adapter)}")]
    request = pb.StartDownloadRequest(model_uuid="m1", source="ollama:ada/eyes:v1", projector="none", adapters=adapters)
    await service.downloads.StartDownload(request, metadata=service.caller)
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert [file.name for file in (await service.model("m1")).files] == ["eyes.gguf", "style"]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (("application/vnd.ollama.image.projector", projector_bytes()), "the file is of the kind 'mmproj'"),
        (("application/vnd.ollama.image.tensor", b"x"), "single tensors of Ollama's own format"),
        (("application/vnd.docker.ai.safetensors", b"x"), "safetensors files"),
        (("application/vnd.cncf.model.weight.v1.tar+gzip", b"x"), "application/vnd.cncf.model.weight.v1.tar+gzip"),
        (("application/vnd.oci.image.layer.v1.tar+zstd", b"x"), "application/vnd.oci.image.layer.v1.tar+zstd"),
        ((OLLAMA_MODEL, b"ggla, the former format of adapters"), "not a GGUF file"),
    ],
)
async def test_what_is_no_model_of_gguf_files_is_refused_and_leaves_nothing(
    registry: FakeRegistry, service: Service, layer: tuple[str, bytes], words: str
) -> None:
    registry.push("ada/other", "v1", [layer])
    download = await service.fetched("m1", "ollama:ada/other:v1")
    assert download.state == pb.DOWNLOAD_STATE_FAILED
    assert words in download.error.message
    assert service.stored == []


async def test_a_model_that_was_pushed_without_a_type_comes_and_a_tar_file_of_it_is_refused(
    registry: FakeRegistry, service: Service
) -> None:
    of_parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    registry.push("ada/pushed", "v1", [(ORAS_DEFAULT, LARGE, titled("m.gguf"))])
    registry.push("ada/pushed", "tar", [(ORAS_DEFAULT, tar_of("m.gguf", LARGE), titled("m.gguf"))])
    registry.push("ada/pushed", "parts", [(ORAS_DEFAULT, tar_of(name, TINY), titled(name)) for name in of_parts])
    download = await service.fetched("m1", f"oci://{registry.host}/ada/pushed:v1")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert (await service.path("m1")).read_bytes() == LARGE
    for uuid, tag in (("m2", "tar"), ("m3", "parts")):
        error = (await service.fetched(uuid, f"oci://{registry.host}/ada/pushed:{tag}")).error
        assert error.reason == "SOURCE_REFUSED"
        assert "a tar file is not unpacked: push the file itself, as m" in error.message


async def test_bytes_that_are_not_those_of_the_manifest_are_refused(registry: FakeRegistry, service: Service) -> None:
    of_tiny = registry.repositories["library/tiny"]
    of_tiny.blobs[digest(LARGE)] = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    download = await service.fetched("m1", "ollama:tiny:135m")
    assert (download.error.reason, service.stored) == ("CONTENT_MISMATCH", [])


async def test_models_of_registries_are_found_by_their_kind(service: Service) -> None:
    await service.fetched("m1", "ollama:tiny:135m")
    request = pb.ListCatalogueModelsRequest(source_kind=ModelSourceKind.MODEL_SOURCE_KIND_REGISTRY)
    found = await service.catalogue.ListCatalogueModels(request)
    assert [item.model_uuid for item in found.models] == ["m1"]


async def test_a_pinned_model_is_that_of_the_digest_also_after_the_tag_has_moved(
    registry: FakeRegistry, service: Service
) -> None:
    pinned = registry.repositories["library/tiny"].tags["135m"]
    registry.push("library/tiny", "135m", [(OLLAMA_MODEL, TINY)])
    for uuid, place in (("m1", f"oci://{registry.host}/library/tiny"), ("m2", "ollama:tiny")):
        download = await service.fetched(uuid, f"{place}@{pinned}")
        assert (download.error.message, download.sha256) == ("", sha256(LARGE))


async def test_a_wrong_form_is_refused_with_the_nearest_right_one(service: Service) -> None:
    for source, hint in (
        ("tiny:135m", "did you mean ollama:tiny:135m?"),
        ("oci://ai/tiny", "did you mean oci://docker.io/ai/tiny?"),
        ("ghcr.io/a/b:v1", "did you mean oci://ghcr.io/a/b:v1?"),
        ("ollama:a/b/c", "ollama:OWNER/NAME:TAG"),
    ):
        with refused("SOURCE_REFUSED") as refusal:
            await service.start("m1", source)
        assert hint in str(refusal)


async def test_a_tag_that_is_not_there_gets_the_nearest_one(registry: FakeRegistry, service: Service) -> None:
    download = await service.fetched("m1", "ollama:tiny:135")
    assert download.error.reason == "SOURCE_REFUSED"
    assert "ollama:tiny has no tag 135: did you mean ollama:tiny:135m? There are" in download.error.message
    registry.lists_tags = False
    download = await service.fetched("m2", "ollama:tiny:135")
    assert "there is no ollama:tiny:135: https://ollama.com/library/tiny/tags" in download.error.message
    download = await service.fetched("m3", f"oci://{registry.host}/ada/modle:v1")
    assert f"{registry.host} has no repository ada/modle" in download.error.message


async def test_credentials_get_a_token_and_stay_out_of_every_message(registry: FakeRegistry, service: Service) -> None:
    registry.asks, registry.login = "bearer", ("ada", "registry-secret")
    download = await service.fetched("m1", f"oci://{registry.host}/ada/model:v1")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    of_bytes = {token for path, token in registry.asked if path.startswith("/v2/ada/model/blobs")}
    assert of_bytes == {"Bearer token-0"}
    registry.login = ("ada", "other")
    registry.tokens.clear()
    download = await service.fetched("m2", f"oci://{registry.host}/ada/other:v1")
    assert f"{registry.host} refuses the credentials in LLAMESH_OCI_REGISTRIES" in download.error.message
    assert "registry-secret" not in str(download)
