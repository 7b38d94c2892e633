"""Manifests of registries are read without trust: files and their roles, what is no model of GGUF files, and bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.download.sources import FileRole, SourceRefusedError
from services.download.sources.registry_manifests import (
    MAX_LAYERS,
    MAX_VARIANTS,
    choose_variant,
    is_index,
    read_document,
    read_manifest,
)

W, P, A = FileRole.WEIGHTS, FileRole.PROJECTOR, FileRole.ADAPTER
OLLAMA = "application/vnd.ollama.image"
PLACE = "oci://models.example/ada/model"


def descriptor(media_type: str, number: int = 1, name: str = "", **fields: Any) -> dict[str, Any]:
    found = {"mediaType": media_type, "digest": f"sha256:{number:064x}", "size": 10 + number, **fields}
    return found | ({"annotations": {"org.opencontainers.image.title": name}} if name else {})


def roles(*layers: dict[str, Any]) -> list[tuple[FileRole, int]]:
    manifest = read_manifest({"schemaVersion": 2, "layers": list(layers)}, "0" * 64, PLACE)
    return [(role, int(layer.sha256, 16)) for role, layer in manifest.files]


def test_layers_of_ollama_are_model_projector_and_adapters() -> None:
    layers = [
        descriptor(f"{OLLAMA}.{kind}", number)
        for number, kind in enumerate(["license", "adapter", "projector", "template", "model", "params", "adapter"])
    ]
    assert roles(*layers) == [(W, 4), (P, 2), (A, 1), (A, 6)]


@pytest.mark.parametrize(
    ("media_type", "name", "role"),
    [
        ("application/vnd.docker.ai.gguf.v3", "", W),
        ("application/vnd.docker.ai.mmproj", "", P),
        ("application/vnd.docker.ai.gguf.v3.mmproj", "", P),
        ("application/vnd.docker.ai.gguf.v3.lora", "", A),
        ("Application/vnd.Docker.AI.gguf.v3 ; a=b", "", W),
        ("application/octet-stream; charset=binary", "model.gguf", W),
        ('Application/Octet-Stream;charset="binary" ;q=1', "model.gguf", W),
        ("application/vnd.cncf.model.weight.v1.gguf", "", W),
        ("application/vnd.cncf.model.weight.v1.raw", "dir/model.gguf", W),
        ("application/octet-stream", "model.GGUF", W),
        ("application/vnd.cnai.model.weight.v1.raw", "model.gguf", W),
        ("binary/octet-stream", "model.gguf", W),
        ("application/gguf", "model.gguf", W),
        ("application/x-gguf", "model.gguf", W),
        ("model/gguf", "model.gguf", W),
        ("application/vnd.gguf.model", "model.gguf", W),
        ("application/vnd.example-corp.model.gguf.v1", "model.gguf", W),
        ("application/octet-stream", "mmproj-model.gguf", P),
        ("application/vnd.oci.image.layer.v1.tar", "model.gguf", W),
        ("application/vnd.oci.image.layer.v1.tar", "mmproj-model.gguf", P),
        ("application/vnd.ollama.image.model; x=y", "", W),
    ],
)
def test_a_file_is_known_by_its_type_or_its_name(media_type: str, name: str, role: FileRole) -> None:
    assert roles(descriptor(media_type, 1, name), descriptor("text/plain", 2, "README.md")) == [(role, 1)]


def test_parts_come_in_the_order_of_their_numbers() -> None:
    parts = [descriptor("application/vnd.docker.ai.gguf.v3", n, f"m-0000{n}-of-00003.gguf") for n in (3, 1, 2)]
    assert roles(*parts) == [(W, 1), (W, 2), (W, 3)]


@pytest.mark.parametrize(
    "left",
    [
        descriptor("application/vnd.docker.ai.gguf.v4", 2),
        descriptor("application/vnd.docker.ai.mmproj.v2", 2),
        descriptor("application/vnd.cncf.model.weight.v1.gguf+zstd", 2),
        descriptor("application/vnd.docker.ai.gguf.v3; encoding=gzip", 2),
        descriptor("application/vnd.cncf.model.weight.v1.tar", 2, "mmproj-m.gguf"),
        descriptor("text/plain", 2, "m-00002-of-00002.GGUF"),
    ],
)
def test_a_model_is_refused_if_one_of_its_gguf_files_is_not_taken(left: dict[str, Any]) -> None:
    for layers in ([descriptor(f"{OLLAMA}.model"), left], [left, descriptor("application/gguf", 1, "m.gguf")]):
        with pytest.raises(SourceRefusedError) as refused:
            roles(*layers, descriptor("text/markdown", 3, "README.md"))
        assert refused.value.rule == "format"
        assert f"layers of the types {left['mediaType']} that are not taken" in str(refused.value)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "has no files"),
        ([descriptor(f"{OLLAMA}.tensor; name=a")], "single tensors of Ollama's own format"),
        ([descriptor("application/vnd.docker.ai.safetensors")], "safetensors files, which engines do not take"),
        ([descriptor("application/vnd.oci.image.layer.v1.tar+gzip")], "the file system of a container image"),
        ([descriptor("application/vnd.oci.image.layer.v1.tar", name="model")], "the file system of a container image"),
        (
            [
                descriptor("application/vnd.cncf.model.weight.v1.safetensors"),
                descriptor("application/vnd.cncf.model.doc.v1.tar+gzip", 2),
            ],
            "it has safetensors files, which engines do not take, and packed layers of the types application/vnd.cncf.model.doc.v1.tar",
        ),
        ([descriptor("application/x-other\x1b[31m")], "only layers of the types application/x-other?"),
        ([descriptor(f"{OLLAMA}.projector", n) for n in (1, 2)], "with 2 projectors; at most 1"),
        ([descriptor(f"{OLLAMA}.adapter", n) for n in range(9)], "with 9 adapters; at most 8"),
        ([descriptor(f"{OLLAMA}.model", n) for n in range(257)], "with 257 parts; at most 256"),
        ([descriptor(f"{OLLAMA}.model")] * (MAX_LAYERS + 1), f"with {MAX_LAYERS + 1} layers"),
    ],
)
def test_what_is_no_model_of_gguf_files_is_refused_in_words(layers: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(SourceRefusedError) as refused:
        roles(*layers)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.cncf.model.weight.v1.tar+gzip",
        "application/vnd.cncf.model.weight.v1.tar",
        "application/vnd.cncf.model.weight.v1.gguf+zstd",
        "application/vnd.docker.ai.gguf.v3+gzip",
        "application/vnd.oci.image.layer.v1.tar.gzip",
        "application/gzip",
        "application/x-gzip; level=9",
        "application/zstd",
        "application/x-tar",
        "application/zip",
        "Application/Octet-Stream+GZIP",
        "application/vnd.model.v1.targz",
        "application/vnd.x.tar_gz",
        "application/x-tgz",
        "application/x-7z-compressed",
        "application/x-xz-compressed",
        "application/x-compressed-tar",
        "application/vnd.x+br",
        "application/vnd.x+lzma",
        "application/x-bzip",
        "application/zlib",
        "application/vnd.rar",
        "application/vnd.gguf.tar",
        "application/octet-stream;x=+gzip",
        "application/octet-stream; encoding=br",
        "application/vnd.docker.ai.gguf.v3; q=1; encoding=zstd",
    ],
)
def test_a_packed_layer_is_refused_by_its_type_even_if_its_file_is_called_gguf(media_type: str) -> None:
    with pytest.raises(SourceRefusedError) as refused:
        roles(descriptor(media_type, name="m.gguf"))
    assert refused.value.rule == "format"
    assert f"it has packed layers of the types {media_type.lower()}" in str(refused.value)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.x.compressed",
        "text/plain",
        "application/octet-stream.v2",
    ],
)
def test_a_file_of_a_type_that_may_be_packed_is_refused_with_the_types_that_are_not(media_type: str) -> None:
    with pytest.raises(SourceRefusedError) as refused:
        roles(descriptor(media_type, name="m.gguf"))
    assert f"only layers of the types {media_type}; a file that is called .gguf is taken if" in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "sha512:" + "0" * 128},
        {"digest": f"sha256:{'G' * 64}"},
        {"digest": "sha256:../../x"},
        {"digest": None},
        {"size": -1},
        {"size": True},
        {"size": 1 << 60},
        {"size": "1"},
        {"mediaType": 7},
    ],
)
def test_a_malformed_descriptor_is_no_layer(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="descriptor"):
        roles(descriptor(f"{OLLAMA}.model") | wrong)


@pytest.mark.parametrize("name", ["a\x1b.gguf", "a" * 2000 + ".gguf", 7, None])
def test_a_name_that_cannot_be_shown_is_no_name(name: object) -> None:
    layer = descriptor(f"{OLLAMA}.model") | {"annotations": {"org.opencontainers.image.title": name}}
    manifest = read_manifest({"layers": [layer]}, "0" * 64, PLACE)
    assert manifest.files[0][1].name == ""


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"schemaVersion": 1}', b"no", b"[" * 200_000, b"\xff"])
def test_what_is_no_manifest_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_document(body)


def test_an_index_of_one_model_is_followed_and_one_of_several_asks() -> None:
    attestation = descriptor("m", 3) | {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    one = {"schemaVersion": 2, "manifests": [descriptor("m", 1), attestation]}
    assert is_index(read_document(json.dumps(one).encode()))
    assert choose_variant(one, PLACE) == f"{1:064x}"
    with pytest.raises(SourceRefusedError, match=f"name the one of the model, such as {PLACE}@sha256:{1:064x}, "):
        choose_variant({"manifests": [descriptor("m", 1), descriptor("m", 2)]}, PLACE)
    with pytest.raises(SourceRefusedError, match="with 101 manifests"):
        choose_variant({"manifests": [descriptor("m")] * (MAX_VARIANTS + 1)}, PLACE)
    with pytest.raises(SourceRefusedError, match="an index of 0 manifests"):
        choose_variant({"manifests": []}, PLACE)
    for malformed in ({"manifests": 1}, {"manifests": ["x"]}):
        with pytest.raises(ValueError, match=r"."):
            choose_variant(malformed, PLACE)
