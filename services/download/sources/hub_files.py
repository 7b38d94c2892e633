"""Chooses the files that the address of a Hugging Face repository means: one, or all parts of a model. No I/O.

Invariant: a model is chosen only if the address is unambiguous; otherwise the error lists the possible ones, nearest first. A repository
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
from llamesh.part_names import MAX_PARTS, part_of, whole_name
from llamesh.sizes import size
from services.download.sources.object_names import MAX_NAME_BYTES, is_usable
from services.download.sources.source import MAX_OBJECT_BYTES, SourceError, SourceRefusedError

DEFAULT_TYPE = "Q4_K_M"
"""The type that llama.cpp and Ollama use by default."""
_PROJECTOR_TYPES = ("F16", "BF16", "Q8_0", "F32")
_MAX_LISTED = 20
_TYPE = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+(?:_(?:K|\d|XXS|XS|S|M|L|XL|XXL|NL))*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4(?:_MOE)?))(?=$|[-._/])",
    re.IGNORECASE,
)
_BITS = re.compile(r"16|32|\d")
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
        found = _TYPE.findall(whole_name(self.path).removesuffix(".gguf"))
        return found[-1].upper() if found else ""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of a repository: its files, in the order of their numbers. `count` is the number of files that it should have."""

    files: Sequence[HubFile]
    count: int

    @property
    def type(self) -> str:
        """The type in the name of its files."""
        return self.files[0].type

    @property
    def size(self) -> int | None:
        """Size of all files in bytes, None if one is unknown."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


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


def choose(listing: HubListing, address: HubAddress) -> Sequence[HubFile]:
    """Return the files of the model that an address means. Raises SourceError, which lists the possible models or the missing parts.

    Raises SourceRefusedError if a GGUF file has a name that may not be shown: the messages list the names.
    """
    if address.path:
        files = _models(_gguf_files(listing, address))
        of_path = [model for model in files if address.path in {file.path for file in model.files}]
        return _single(address, of_path, files)
    models = models_in(listing, address)
    if address.choice:
        return _single(address, [model for model in models if _key(model.type) == _key(address.choice)], models)
    if len(models) == 1:
        return _single(address, models, models)
    return _single(address, [model for model in models if model.type == DEFAULT_TYPE], models)


def models_in(listing: HubListing, address: HubAddress) -> list[HubModel]:
    """Return the models of a repository, of which parts may be missing. Raises the errors of `choose` about all files."""
    return _models([file for file in _gguf_files(listing, address) if not _belongs_to_a_model(file)])


def file_of(listing: HubListing, address: HubAddress) -> HubFile:
    """Return the file at the path of an address, or the first of its model. Raises the errors of `choose`."""
    named = [file for file in _gguf_files(listing, address) if file.path == address.path]
    return named[0] if named else choose(listing, address)[0]


def _gguf_files(listing: HubListing, address: HubAddress) -> list[HubFile]:
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
    return files


def projector_of(listing: HubListing, weights: HubFile) -> Sequence[HubFile]:
    """Return the projector for a model, if the repository has one: in the folder of the model, else in the first one of all.

    Of several the type decides: F16, BF16, Q8_0, F32, then any.
    """
    found = [file for file in listing.files if file.path.lower().endswith(".gguf") and _is_projector(file)]
    if _is_projector(weights) or not found:
        return ()
    folder = weights.path.rpartition("/")[0]
    order = {name: at for at, name in enumerate(_PROJECTOR_TYPES)}
    return sorted(
        found,
        key=lambda file: (
            file.path.rpartition("/")[0] != folder,
            file.path.count("/"),
            order.get(file.type, len(order)),
            file.path,
        ),
    )[:1]


def _is_projector(file: HubFile) -> bool:
    return "mmproj" in file.path.rpartition("/")[2].lower()


def _belongs_to_a_model(file: HubFile) -> bool:
    return any(word in file.path.lower() for word in ("mmproj", "imatrix"))


def _models(files: Iterable[HubFile]) -> list[HubModel]:
    """Group the parts of models. The order is that of their first files in the listing."""
    groups: dict[tuple[str, int], dict[int, HubFile]] = {}
    for file in files:
        number, count = part_of(file.path)
        key = whole_name(file.path) if count > 1 else file.path
        groups.setdefault((key, count), {})[number] = file
    return [HubModel([parts[number] for number in sorted(parts)], count) for (_, count), parts in groups.items()]


def _single(address: HubAddress, matching: Sequence[HubModel], all_models: Sequence[HubModel]) -> Sequence[HubFile]:
    whole = [model for model in matching if model.count == 1]
    matching = whole or matching
    if len(matching) == 1:
        return _complete(address, matching[0])
    if matching:
        names = "; ".join(_address_of(address, model.files[0]) for model in matching[:_MAX_LISTED])
        raise SourceError(
            f"{address.repository} has {len(matching)} files of the type {matching[0].type}: name one: {names}"
        )
    if address.path:
        meant = nearest(address.path, [file.path for model in all_models for file in model.files], 0.5)
        hint = (
            f"did you mean {_address_of(address, HubFile(meant, None, ''))}?" if meant else _listed(address, all_models)
        )
        raise SourceError(f"{address.repository} has no file {address.path}: {hint}")
    what = (
        f"has no file of the type {address.choice}" if address.choice else f"has several models and no {DEFAULT_TYPE}"
    )
    raise SourceError(f"{address.repository} {what}: {_listed(address, all_models)}")


def _complete(address: HubAddress, model: HubModel) -> Sequence[HubFile]:
    if model.count > MAX_PARTS:
        raise SourceError(f"{model.files[0].path} is of a model in {model.count} parts; at most {MAX_PARTS} are taken")
    present = {part_of(file.path)[0] for file in model.files}
    missing = [str(number) for number in range(1, model.count + 1) if number not in present]
    if missing:
        raise SourceError(
            f"{address.repository} lacks {'part' if len(missing) == 1 else 'parts'} {', '.join(missing[:_MAX_LISTED])} of"
            f" {model.count} of {whole_name(model.files[0].path)}: ask its owner, or take another file of it"
        )
    return model.files


def _listed(address: HubAddress, models: Iterable[HubModel]) -> str:
    """Return the available types with their sizes, nearest to the wanted type first; models without a type by their addresses."""
    sizes: dict[str, list[HubModel]] = {}
    for model in models:
        sizes.setdefault(model.type or _address_of(address, model.files[0]), []).append(model)
    if not sizes:
        return "it has no model"
    wanted = _key(address.choice or DEFAULT_TYPE)
    order = sorted(sizes, key=lambda type_: _distance(wanted, _key(type_)))
    shown = [f"{type_}{_size(sizes[type_])}" for type_ in order[:_MAX_LISTED]]
    more = f", and {len(order) - _MAX_LISTED} more" if len(order) > _MAX_LISTED else ""
    meant = order[0] if ":" in order[0] else str(replace(address, choice=order[0], path=""))
    return f"did you mean {meant}? There are {', '.join(shown)}{more}"


def _size(models: Sequence[HubModel]) -> str:
    return f" ({size(models[0].size)})" if len(models) == 1 and models[0].size is not None else ""


def _address_of(address: HubAddress, file: HubFile) -> str:
    return str(replace(address, choice="", path=file.path))


def _distance(wanted: str, type_: str) -> tuple[int, float]:
    """Return how different two types are: first in bits per weight, then in letters."""
    bits = [int(found[0]) if (found := _BITS.search(text)) else 0 for text in (wanted, type_)]
    return abs(bits[0] - bits[1]), -difflib.SequenceMatcher(None, wanted, type_).ratio()


def _key(type_: str) -> str:
    return type_.upper().replace("-", "_")
