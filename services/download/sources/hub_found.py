"""What a search of the Hugging Face Hub finds: repositories, and the models in the listing of each. No I/O.

Invariant: repositories and files with invalid names are skipped, because results are shown and fetched by name. No more of an answer is
read than was asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from llamesh.hub_addresses import HubAddress, read_hub_address
from services.download.sources.hub_files import HubModel, models_in
from services.download.sources.hub_listing import HubFile, HubListing
from services.download.sources.object_names import is_usable

MAX_MODELS = 100
"""Maximum number of models of one repository that are listed."""
MAX_TAGS = 1_000
"""Maximum number of tags of a repository that are searched for its license."""

_MAX_REPOSITORY = 256
"""Maximum number of characters of the id of a repository; the Hub allows fewer."""
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


def read_found(document: Any, most: int) -> list[FoundRepository]:
    """Read the first `most` repositories of the Hub's answer to a search. Raises ValueError if it is not such an answer."""
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document[:most]):
        raise ValueError("not a list of repositories")
    return [found for item in document[:most] if (found := _repository(item)) is not None]


def _repository(item: dict[str, Any]) -> FoundRepository | None:
    name, tags = item.get("id"), item.get("tags")
    if not isinstance(name, str) or len(name) > _MAX_REPOSITORY:
        return None
    try:
        address = read_hub_address(name)
    except ValueError:
        return None
    texts = (tag for tag in islice(tags, MAX_TAGS) if isinstance(tag, str)) if isinstance(tags, list) else iter(())
    words = next((text.removeprefix(_LICENSE) for text in texts if text.startswith(_LICENSE)), "")
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
    complete = [model for model in models_in(listing, address) if model.is_complete]
    models = sorted(complete, key=lambda model: model.files[0].path)[:MAX_MODELS]
    types = Counter(model.type for model in complete)
    return [
        _model(
            address, model, listing.projector_for(model.files[0]), by_type=bool(model.type) and types[model.type] == 1
        )
        for model in models
    ]


def _model(address: HubAddress, model: HubModel, projector: HubFile | None, *, by_type: bool) -> FoundModel:
    first = model.files[0]
    sizes = [model.size, *([projector.size] if projector is not None else [])]
    return FoundModel(
        source=str(replace(address, choice=model.type) if by_type else replace(address, path=first.path)),
        path=first.path,
        type=model.type,
        size=None if None in sizes else sum(size or 0 for size in sizes),
        files=model.count + len(sizes) - 1,
        sha256=first.sha256 if model.count == 1 else "",
    )
