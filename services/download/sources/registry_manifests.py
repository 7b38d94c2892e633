"""Manifests and indexes of registries, read without trust: which layers are files of a model, and which cannot be. No I/O.

A layer is a GGUF file if its media type says so (Ollama, Docker Model Runner, ModelPack), or if its name in the annotations ends in .gguf
and its media type is one that files have as they are: there are too many names for archives and compressed files to know all. One type is
given to tar files and to files as they are, so the bytes decide (`may_be_packed`). Invariant: what is read is bounded in bytes, layers and
texts, and each file has a size and a SHA-256; a model is taken with all layers that name or type call GGUF files, or not at all. A layer's
own addresses (`urls`) are never used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llamesh.part_names import MAX_PARTS, part_of
from services.download.sources.object_names import is_usable
from services.download.sources.shown_texts import shown_phrase
from services.download.sources.source import (
    MAX_ADAPTERS,
    MAX_OBJECT_BYTES,
    FileRole,
    SourceRefusedError,
    is_projector_name,
)

MAX_MANIFEST_BYTES = 4 << 20
"""Maximum size of a manifest or an index: the size that the specification asks registries to accept."""
MAX_LAYERS = 1_000
"""Maximum number of layers of a manifest. Models have up to some dozens."""
MAX_VARIANTS = 100
"""Maximum number of manifests of an index."""
_MAX_SHOWN = 5
"""Variants, or types of layers, that a message names."""

ACCEPT = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json,"
    " application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
)
"""The header of requests for manifests."""

_WEIGHTS, _PROJECTOR, _ADAPTER = FileRole.WEIGHTS, FileRole.PROJECTOR, FileRole.ADAPTER
_ROLES = {
    "application/vnd.ollama.image.model": _WEIGHTS,
    "application/vnd.ollama.image.projector": _PROJECTOR,
    "application/vnd.ollama.image.adapter": _ADAPTER,
    "application/vnd.docker.ai.gguf.v3": _WEIGHTS,
    "application/vnd.docker.ai.gguf.v3.mmproj": _PROJECTOR,
    "application/vnd.docker.ai.mmproj": _PROJECTOR,
    "application/vnd.docker.ai.gguf.v3.lora": _ADAPTER,
    "application/vnd.docker.ai.model.file.v1+gguf": _WEIGHTS,
    "application/vnd.cncf.model.weight.v1.gguf": _WEIGHTS,
}
"""Role of a file by its media type. Other types are decided by the name of the file."""
LICENCES = {"application/vnd.ollama.image.license", "application/vnd.docker.ai.license"}
"""Media types of the text of a licence."""
TEMPLATES = {
    "application/vnd.ollama.image.template": "go",
    "application/vnd.ollama.image.prompt": "go",
    "application/vnd.docker.ai.chat.template.jinja": "jinja",
}
"""Language of a chat template by its media type."""
_NAMES = ("org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath")
"""Annotations with the name of a layer's file."""
_FORMATS = {
    "vnd.ollama.image.tensor": "single tensors of Ollama's own format",
    "safetensors": "safetensors files",
    "rootfs": "the file system of a container image",
    "image.layer": "the file system of a container image",
}
"""What a media type that contains a word is, for the refusal of a manifest without GGUF files."""
_AS_IT_IS = re.compile(
    r"(?:application|binary)/octet-stream"
    r"|application/vnd\.(?:cncf|cnai)\.model\.weight\.v1\.raw"
    r"|(?:application|model)/(?:(?:vnd|prs|x)[.-])?(?:(?:[a-z0-9_-]+\.)*)gguf(?:\.(?:model|v[0-9]+))*"
)
"""Media types of a file that is neither packed nor compressed: those that people push GGUF files with."""
_PACKED = re.compile(
    r"(?:^|[+./_-])(?:g?zip|zstd?|tar|tgz|targz|bzip2?|bz2|xz|lzma|lz4|br|brotli|zlib|7z|rar)(?=$|[+./_-])"
)
"""In a media type, or in the value of a parameter of one: the layer is packed. Not all such types are known."""
_UNTYPED = "application/vnd.oci.image.layer.v1.tar"
"""The type of a tar file, which ORAS also gives to a file that is pushed without a type."""
_CALLS_GGUF = ("gguf", "mmproj")
"""Words of the media type of a file that belongs to a model, whatever else the type says."""
_TAKEN = "a file that is called .gguf is taken if its type is application/octet-stream or names gguf"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a manifest. `name` is that of its file, "" if it has none; `sha256` are hexadecimal digits."""

    media_type: str
    sha256: str
    size: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """The files of a model, with their roles: parts in order, then the projector, then adapters. `texts` are licences and templates."""

    sha256: str
    files: Sequence[tuple[FileRole, Layer]]
    texts: Sequence[Layer]


def read_document(body: bytes) -> dict[str, Any]:
    """Parse a manifest or an index. Raises ValueError if it is not one."""
    try:
        document = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise ValueError("no manifest of version 2")
    return document


def is_index(document: dict[str, Any]) -> bool:
    """Whether a document lists manifests instead of layers."""
    return "manifests" in document and "layers" not in document


def choose_variant(document: dict[str, Any], place: str) -> str:
    """Return the digest of the only model in an index. Raises ValueError, and SourceRefusedError with what there is to choose."""
    entries = document["manifests"]
    if not isinstance(entries, list):
        raise ValueError("an index without a list")
    _check_count(entries, MAX_VARIANTS, f"{place} is an index", "manifests")
    found = [_layer(entry) for entry in entries if not _is_attestation(entry)]
    if len({each.sha256 for each in found}) == 1:
        return found[0].sha256
    names = ", ".join(f"{place}@sha256:{each.sha256}" for each in found[:_MAX_SHOWN])
    words = f"{place} is an index of {len(found)} manifests: name the one of the model" + (
        f", such as {names}" if names else ""
    )
    raise SourceRefusedError(words, rule="variant")


def read_manifest(document: dict[str, Any], sha256: str, place: str) -> ModelManifest:
    """Read the layers of a manifest. Raises ValueError if it is none, and SourceRefusedError if no model of GGUF files is in it."""
    given = document.get("layers")
    if not isinstance(given, list):
        raise ValueError("a manifest without layers")
    _check_count(given, MAX_LAYERS, f"the manifest of {place}", "layers")
    layers = [_layer(each) for each in given]
    files = [(role, layer) for layer in layers if (role := _role(layer)) is not None]
    of_role = {role: [layer for each, layer in files if each is role] for role in FileRole}
    if not files:
        raise SourceRefusedError(_no_files(layers, place), rule="format")
    if left := [layer for layer in layers if _role(layer) is None and _is_called_gguf(layer)]:
        raise SourceRefusedError(_only_some(left, place), rule="format")
    _check_count(of_role[_WEIGHTS], MAX_PARTS, f"the model of {place}", "parts")
    _check_count(of_role[_PROJECTOR], 1, f"the model of {place}", "projectors")
    _check_count(of_role[_ADAPTER], MAX_ADAPTERS, f"the model of {place}", "adapters")
    of_role[_WEIGHTS].sort(key=lambda layer: part_of(layer.name))
    ordered = [(role, layer) for role in FileRole for layer in of_role[role]]
    texts = [layer for layer in layers if _plain(layer.media_type) in LICENCES | TEMPLATES.keys()]
    return ModelManifest(sha256, ordered, texts)


def template_language(layer: Layer) -> str:
    """Return the language of a chat template, "" if the layer is none."""
    return TEMPLATES.get(_plain(layer.media_type), "")


def may_be_packed(layer: Layer) -> bool:
    """Return whether only the first bytes of a layer say whether it is a GGUF file or a tar file."""
    return _is_named_gguf(layer) and _whole(layer.media_type) == _UNTYPED


def packed_words(layer: Layer, place: str) -> str:
    """Return why a layer is refused that may be packed and does not begin like a GGUF file."""
    name = shown_phrase(layer.name)
    return (
        f"{place} has no GGUF file: the bytes of {name} are none, and its type is {_UNTYPED}; a tar file is not unpacked: push the file"
        f" itself, as {name}:application/octet-stream"
    )


def _role(layer: Layer) -> FileRole | None:
    plain = _plain(layer.media_type)
    if _is_packed(layer):
        return None
    if plain in _ROLES:
        return _ROLES[plain]
    if not _is_named_gguf(layer) or not (_AS_IT_IS.fullmatch(plain) or may_be_packed(layer)):
        return None
    return _PROJECTOR if is_projector_name(layer.name) else _WEIGHTS


def _is_named_gguf(layer: Layer) -> bool:
    return layer.name.lower().endswith(".gguf")


def _is_called_gguf(layer: Layer) -> bool:
    """Whether its name or its type calls a layer a GGUF file."""
    return _is_named_gguf(layer) or any(word in _plain(layer.media_type) for word in _CALLS_GGUF)


def _is_packed(layer: Layer) -> bool:
    """Whether the media type, or a parameter of it, such as an encoding, says that a layer is packed."""
    if may_be_packed(layer):
        return False
    plain, *parameters = _whole(layer.media_type).split(";")
    values = (parameter.partition("=")[2].strip(' "') for parameter in parameters)
    return any(map(_PACKED.search, (plain.strip(), *values)))


def _whole(media_type: str) -> str:
    return media_type.strip().lower()


def _plain(media_type: str) -> str:
    """Return a media type without its parameters."""
    return _whole(media_type.partition(";")[0])


def _layer(given: Any) -> Layer:
    """Read a descriptor. Raises ValueError if it has not type, size and SHA-256."""
    if not isinstance(given, dict):
        raise ValueError("a descriptor is no object")
    media_type, digest, size, annotations = (given.get(key) for key in ("mediaType", "digest", "size", "annotations"))
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if not isinstance(media_type, str) or found is None or type(size) is not int or not 0 <= size <= MAX_OBJECT_BYTES:
        raise ValueError("a descriptor has no media type, size or SHA-256")
    names = [annotations.get(key) for key in _NAMES] if isinstance(annotations, dict) else []
    name = next((each for each in names if isinstance(each, str) and is_usable(each)), "")
    return Layer(media_type[:256], found[1], size, name)


def _is_attestation(entry: Any) -> bool:
    """Whether an entry of an index is a statement about another one, as build tools add it."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return isinstance(annotations, dict) and "vnd.docker.reference.type" in annotations


def _check_count(found: Sequence[Any], most: int, what: str, of_what: str) -> None:
    if len(found) > most:
        raise SourceRefusedError(f"{what} with {len(found)} {of_what}; at most {most} are taken", rule="layers")


def _no_files(layers: Sequence[Layer], place: str) -> str:
    plain, packed, found = list[Layer](), list[Layer](), list[str]()
    for layer in layers:
        (packed if _is_packed(layer) else plain).append(layer)
    if formats := _formats(plain):
        found.append(f"{formats}, which engines do not take")
    if packed:
        what = f" ({formats})" if (formats := _formats(packed)) else ""
        found.append(f"packed layers of the types {_types(packed)}{what}, which are not unpacked")
    if found:
        return f"{place} has no GGUF file: it has {', and '.join(found)}"
    if not plain:
        return f"{place} has no files, as models that run only on a server of others have none"
    words = f"{place} has no GGUF file, only layers of the types {_types(plain)}"
    return f"{words}; {_TAKEN}" if any(map(_is_named_gguf, plain)) else words


def _only_some(left: Sequence[Layer], place: str) -> str:
    return (
        f"{place} has layers of the types {_types(left)} that are not taken, and their names or types call them GGUF files:"
        f" the model would not be whole; {_TAKEN}"
    )


def _formats(layers: Iterable[Layer]) -> str:
    types = dict.fromkeys(_plain(layer.media_type) for layer in layers)
    return " and ".join(dict.fromkeys(words for each in types for key, words in _FORMATS.items() if key in each))


def _types(layers: Iterable[Layer]) -> str:
    return ", ".join(list(dict.fromkeys(shown_phrase(_whole(layer.media_type)) for layer in layers))[:_MAX_SHOWN])
