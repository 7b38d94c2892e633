"""Chooses the file that the address of a Hugging Face repository means. No I/O.

Invariant: a file is chosen only if the address is unambiguous; otherwise the error lists the possible files, nearest first. A repository
with a GGUF file whose name breaks the rule of `object_names` is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamesh.hub_addresses import HubAddress
from llamesh.nearest import nearest
from llamesh.sizes import size
from services.download.sources.object_names import MAX_NAME_BYTES, is_usable
from services.download.sources.source import MAX_OBJECT_BYTES, SourceError, SourceRefusedError

DEFAULT_TYPE = "Q4_K_M"
"""The type that llama.cpp and Ollama use by default."""
_MAX_LISTED = 20
_TYPE = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+(?:_(?:K|\d|XXS|XS|S|M|L|XL|XXL|NL))*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4(?:_MOE)?))(?=$|[-._/])",
    re.IGNORECASE,
)
_BITS = re.compile(r"16|32|\d")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. `size` is in bytes, None if the Hub does not give it; `sha256` is "" if the file is not in Git LFS."""

    path: str
    size: int | None
    sha256: str

    @property
    def type(self) -> str:
        """The type in the file's name, in capitals; "" if the name has none."""
        found = _TYPE.findall(_PART.sub("", self.path.removesuffix(".gguf")))
        return found[-1].upper() if found else ""

    @property
    def parts(self) -> int:
        """The number of files that the model is split into."""
        found = _PART.search(self.path.removesuffix(".gguf"))
        return int(found[2]) if found else 1


@dataclass(frozen=True, slots=True)
class HubListing:
    """The files of a repository at one commit."""

    commit: str
    files: Sequence[HubFile]


def read_listing(document: Any) -> HubListing:
    """Read the Hub's answer about a repository. Raises ValueError if it is not a listing."""
    try:
        commit = document["sha"]
        files = [_file(item) for item in document["siblings"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a listing of a repository") from error
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise ValueError("a listing without a commit")
    return HubListing(commit, files)


def _file(item: Any) -> HubFile:
    path, size, lfs = item["rfilename"], item.get("size"), item.get("lfs") or {}
    digest = lfs.get("sha256", "")
    if not isinstance(path, str) or ".." in path.split("/"):
        raise TypeError("no path")
    known = isinstance(digest, str) and _DIGEST.fullmatch(digest)
    return HubFile(
        path, size if isinstance(size, int) and 0 <= size <= MAX_OBJECT_BYTES else None, digest if known else ""
    )


def choose(listing: HubListing, address: HubAddress) -> HubFile:
    """Return the file that an address means. Raises SourceError, which lists the possible files.

    Raises SourceRefusedError if a GGUF file has a name that may not be shown: the messages list the names.
    """
    files = [file for file in listing.files if file.path.lower().endswith(".gguf")]
    if not all(is_usable(file.path) for file in files):
        raise SourceRefusedError(
            f"{address.repository} has a GGUF file whose name is not UTF-8, is longer than {MAX_NAME_BYTES} bytes, or has control or"
            " format characters",
            rule="file name",
        )
    if not files:
        others = any(file.path.endswith(".safetensors") for file in listing.files)
        hint = ": it has safetensors only; look for a repository with -GGUF in its name" if others else ""
        raise SourceError(f"{address.repository} has no GGUF file{hint}")
    if address.path:
        return _single(address, [file for file in files if file.path == address.path], files)
    models = [file for file in files if "mmproj" not in file.path.lower() and "imatrix" not in file.path.lower()]
    if address.choice:
        return _single(address, [file for file in models if _key(file.type) == _key(address.choice)], models)
    if len(models) == 1:
        return _single(address, models, models)
    return _single(address, [file for file in models if file.type == DEFAULT_TYPE], models)


def _single(address: HubAddress, matching: Sequence[HubFile], all_files: Sequence[HubFile]) -> HubFile:
    whole = [file for file in matching if file.parts == 1]
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = "; ".join(_address_of(address, file) for file in whole[:_MAX_LISTED])
        raise SourceError(f"{address.repository} has {len(whole)} files of the type {whole[0].type}: name one: {names}")
    if matching:
        raise SourceError(
            f"{matching[0].path} is one of {matching[0].parts} parts, and models in parts are not supported: merge them with"
            f" `llama-gguf-split --merge`, or take another: {_listed(address, all_files)}"
        )
    if address.path:
        meant = nearest(address.path, [file.path for file in all_files], 0.5)
        hint = (
            f"did you mean {_address_of(address, HubFile(meant, None, ''))}?" if meant else _listed(address, all_files)
        )
        raise SourceError(f"{address.repository} has no file {address.path}: {hint}")
    what = (
        f"has no file of the type {address.choice}" if address.choice else f"has several models and no {DEFAULT_TYPE}"
    )
    raise SourceError(f"{address.repository} {what}: {_listed(address, all_files)}")


def _listed(address: HubAddress, files: Iterable[HubFile]) -> str:
    """Return the available types with their sizes, nearest to the wanted type first; files without a type by their addresses."""
    sizes: dict[str, list[HubFile]] = {}
    for file in files:
        if file.parts == 1:
            sizes.setdefault(file.type or _address_of(address, file), []).append(file)
    if not sizes:
        return "all its models are in parts"
    wanted = _key(address.choice or DEFAULT_TYPE)
    order = sorted(sizes, key=lambda type_: _distance(wanted, _key(type_)))
    shown = [f"{type_}{_size(sizes[type_])}" for type_ in order[:_MAX_LISTED]]
    more = f", and {len(order) - _MAX_LISTED} more" if len(order) > _MAX_LISTED else ""
    meant = order[0] if ":" in order[0] else str(replace(address, choice=order[0], path=""))
    return f"did you mean {meant}? There are {', '.join(shown)}{more}"


def _size(files: Sequence[HubFile]) -> str:
    return f" ({size(files[0].size)})" if len(files) == 1 and files[0].size is not None else ""


def _address_of(address: HubAddress, file: HubFile) -> str:
    return str(replace(address, choice="", path=file.path))


def _distance(wanted: str, type_: str) -> tuple[int, float]:
    """Return how different two types are: first in bits per weight, then in letters."""
    bits = [int(found[0]) if (found := _BITS.search(text)) else 0 for text in (wanted, type_)]
    return abs(bits[0] - bits[1]), -difflib.SequenceMatcher(None, wanted, type_).ratio()


def _key(type_: str) -> str:
    return type_.upper().replace("-", "_")
