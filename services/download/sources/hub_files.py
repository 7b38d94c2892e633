"""Chooses the files that the address of a Hugging Face repository means: one, or all parts of a model. No I/O.

Invariant: a model is chosen only if the address is unambiguous; otherwise the error lists the possible ones, nearest first. The work is
bounded by that of one pass over a listing, which is bounded itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llamesh.hub_addresses import HubAddress
from llamesh.nearest import near, nearest
from llamesh.part_names import MAX_PARTS, part_of, whole_name
from llamesh.sizes import size
from services.download.sources.hub_listing import HubFile, HubListing
from services.download.sources.source import SourceRefusedError

DEFAULT_TYPE = "Q4_K_M"
"""The type that llama.cpp and Ollama use by default."""
_MAX_LISTED = 20
_BITS = re.compile(r"16|32|\d")


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

    @property
    def is_complete(self) -> bool:
        """Whether no part is missing."""
        return len(self.files) == self.count

    def is_at(self, path: str) -> bool:
        """Return whether a path is that of one of its files, or their common name without the number of a part."""
        return path == whole_name(self.files[0].path) or path in {file.path for file in self.files}


def choose(listing: HubListing, address: HubAddress) -> Sequence[HubFile]:
    """Return the files of the model that an address means. Raises SourceRefusedError, with the possible models or the missing parts."""
    if address.path:
        files = _models(_gguf_files(listing, address))
        return _single(address, [model for model in files if model.is_at(address.path)], files)
    models = models_in(listing, address)
    if address.choice:
        return _single(address, [model for model in models if _key(model.type) == _key(address.choice)], models)
    if len({model.type or model.files[0].path for model in models}) == 1:
        return _single(address, models, models)
    return _single(address, [model for model in models if model.type == DEFAULT_TYPE], models)


def models_in(listing: HubListing, address: HubAddress) -> list[HubModel]:
    """Return the models of a repository, of which parts may be missing. Raises the errors of `choose` about all files."""
    return _models([file for file in _gguf_files(listing, address) if not _is_companion(file)])


def _gguf_files(listing: HubListing, address: HubAddress) -> list[HubFile]:
    if not listing.files:
        hint = (
            f": it has safetensors only; `llamesh quantize hf:{address.repository} --types Q4_K_M` converts it, or look for a repository"
            " with -GGUF in its name"
            if listing.has_safetensors
            else ""
        )
        raise SourceRefusedError(f"{address.repository} has no GGUF file{hint}", rule="missing")
    return list(listing.files.values())


def _is_companion(file: HubFile) -> bool:
    """Whether a file is no model but lies beside one: its projector, or the importance matrix that it was made with."""
    return file.is_projector or "imatrix" in file.path.rpartition("/")[2].lower()


def _models(files: Iterable[HubFile]) -> list[HubModel]:
    """Group the parts of models. The order is that of their first files in the listing."""
    groups: dict[tuple[str, int], dict[int, HubFile]] = {}
    for file in files:
        number, count = part_of(file.path)
        key = whole_name(file.path) if count > 1 else file.path
        groups.setdefault((key, count), {})[number] = file
    return [HubModel([parts[number] for number in sorted(parts)], count) for (_, count), parts in groups.items()]


def _single(address: HubAddress, matching: Sequence[HubModel], all_models: Sequence[HubModel]) -> Sequence[HubFile]:
    # What may be taken: one file rather than parts, and parts only if none is missing.
    for usable in (lambda model: model.count == 1, lambda model: model.is_complete):
        matching = list(filter(usable, matching)) or matching
    if len(matching) == 1:
        return _complete(address, matching[0])
    if matching:
        names = "; ".join(_described(address, model) for model in matching[:_MAX_LISTED])
        what = f"of the type {matching[0].type}" if not address.path else f"called {address.path}"
        words = f"{address.repository} has {len(matching)} models {what}: name one: {names}"
        raise SourceRefusedError(words, rule="ambiguous")
    if address.path:
        meant = nearest(address.path, [file.path for model in all_models for file in model.files], 0.5)
        hint = (
            f"did you mean {_address_of(address, HubFile(meant, None, ''))}?" if meant else _listed(address, all_models)
        )
        raise SourceRefusedError(f"{address.repository} has no file {address.path}: {hint}", rule="missing")
    what = (
        f"has no file of the type {address.choice}" if address.choice else f"has several models and no {DEFAULT_TYPE}"
    )
    rule = "missing" if address.choice else "ambiguous"
    raise SourceRefusedError(f"{address.repository} {what}: {_listed(address, all_models)}", rule=rule)


def _complete(address: HubAddress, model: HubModel) -> Sequence[HubFile]:
    if model.count > MAX_PARTS:
        words = f"{model.files[0].path} is of a model in {model.count} parts; at most {MAX_PARTS} are taken"
        raise SourceRefusedError(words, rule="parts")
    present = {part_of(file.path)[0] for file in model.files}
    missing = [str(number) for number in range(1, model.count + 1) if number not in present]
    if missing:
        raise SourceRefusedError(
            f"{address.repository} lacks {'part' if len(missing) == 1 else 'parts'} {', '.join(missing[:_MAX_LISTED])} of"
            f" {model.count} of {whole_name(model.files[0].path)}: ask its owner, or take another file of it",
            rule="parts",
        )
    return model.files


def _listed(address: HubAddress, models: Iterable[HubModel]) -> str:
    """Return the available types with their sizes, nearest to the wanted type first; models without a type by their addresses."""
    sizes: dict[str, list[HubModel]] = {}
    for model in models:
        sizes.setdefault(model.type or _address_of(address, model.files[0]), []).append(model)
    if not sizes:
        return "it has no model"
    order = _nearest_types(_key(address.choice or DEFAULT_TYPE), sizes)
    shown = [f"{type_}{_size(sizes[type_])}" for type_ in order[:_MAX_LISTED]]
    more = f", and {len(order) - _MAX_LISTED} more" if len(order) > _MAX_LISTED else ""
    meant = order[0] if ":" in order[0] else str(replace(address, choice=order[0], path=""))
    return f"did you mean {meant}? There are {', '.join(shown)}{more}"


def _size(models: Sequence[HubModel]) -> str:
    return f" ({size(models[0].size)})" if len(models) == 1 and models[0].size is not None else ""


def _described(address: HubAddress, model: HubModel) -> str:
    """Return the address of a model that has others of its type beside it, and how it differs from them."""
    parts = f" in {model.count} parts" if model.count > 1 else ""
    return f"{_address_of(address, model.files[0])}{parts}{_size([model])}"


def _address_of(address: HubAddress, file: HubFile) -> str:
    return str(replace(address, choice="", path=file.path))


def _nearest_types(wanted: str, types: Iterable[str]) -> list[str]:
    """Return types, the nearest to the wanted one first: first in bits per weight, then in letters."""
    by_key = {_key(type_): type_ for type_ in types}
    bits = {key: abs(_bits(key) - _bits(wanted)) for key in by_key}
    by_bits = sorted(by_key, key=bits.__getitem__)
    alike = {key: at for at, key in enumerate(near(wanted, by_bits, _MAX_LISTED, likeness=0))}
    return [by_key[key] for key in sorted(by_bits, key=lambda key: (bits[key], alike.get(key, _MAX_LISTED)))]


def _bits(type_: str) -> int:
    found = _BITS.search(type_)
    return int(found[0]) if found else 0


def _key(type_: str) -> str:
    return type_.upper().replace("-", "_")
