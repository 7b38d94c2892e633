"""What a search of the Hugging Face Hub finds: repositories, and the models in the listing of each. No I/O.

Invariant: what breaks a rule of names is left out, because all of it is shown and can be fetched by what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamesh.hub_addresses import HubAddress, read_hub_address
from services.download.sources.hub_files import HubFile, HubListing, HubModel, models_in, projector_of
from services.download.sources.object_names import is_usable

MAX_MODELS = 100
"""Maximum number of models of one repository that are listed."""

_MAX_LICENSE = 64
_LICENSE = "license:"


@dataclass(frozen=True, slots=True)
class FoundRepository:
    """A repository as the search describes it."""

    address: HubAddress
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    license: str = ""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model in a repository, with its projector if it has one.

    `size` is that of all files, None if it is unknown; `sha256` is that of the weights, "" if they are in parts or it is unknown.
    """

    source: str
    path: str
    type: str
    size: int | None
    files: int
    sha256: str


def read_found(document: Any) -> list[FoundRepository]:
    """Read the Hub's answer to a search. Raises ValueError if it is not such an answer."""
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise ValueError("not a list of repositories")
    return [found for item in document if (found := _repository(item)) is not None]


def _repository(item: dict[str, Any]) -> FoundRepository | None:
    try:
        address = read_hub_address(str(item.get("id", "")))
    except ValueError:
        return None
    tags = item.get("tags")
    licenses = [str(tag) for tag in tags if str(tag).startswith(_LICENSE)] if isinstance(tags, list) else []
    words = licenses[0].removeprefix(_LICENSE) if licenses else ""
    return FoundRepository(
        address=HubAddress(address.owner, address.repo),
        downloads=_count(item.get("downloads")),
        likes=_count(item.get("likes")),
        gated=bool(item.get("gated")),
        license=words[:_MAX_LICENSE] if is_usable(words) else "",
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def models_of(address: HubAddress, listing: HubListing) -> list[FoundModel]:
    """Return the models in a repository, in the order of their names, without those of which parts are missing. Raises SourceError."""
    complete = [model for model in models_in(listing, address) if len(model.files) == model.count]
    models = sorted(complete, key=lambda model: model.files[0].path)[:MAX_MODELS]
    types = [model.type for model in complete]
    return [
        _model(
            address,
            model,
            projector_of(listing, model.files[0]),
            by_type=bool(model.type) and types.count(model.type) == 1,
        )
        for model in models
    ]


def _model(address: HubAddress, model: HubModel, projector: Sequence[HubFile], *, by_type: bool) -> FoundModel:
    first = model.files[0]
    sizes = [model.size, *(file.size for file in projector)]
    return FoundModel(
        source=str(replace(address, choice=model.type) if by_type else replace(address, path=first.path)),
        path=first.path,
        type=model.type,
        size=None if None in sizes else sum(size or 0 for size in sizes),
        files=model.count + len(projector),
        sha256=first.sha256 if model.count == 1 else "",
    )
