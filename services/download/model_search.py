"""Searches of the catalogue: filters and orders as one SQL statement for each page.

The values that filters compare are stored in lower case beside the model (`searchable`, `set_tags`). Each filter by equality has an index
with each order, so that a page costs the same wherever it is in a list of any length. A part of a name and a tag are compared along the
index of the order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from llamesh.kit.pages import Key, Listing, Page
from services.download.tables import ModelAliasRow, ModelRow, ModelTagRow

_ORDERS: Mapping[str, tuple[InstrumentedAttribute[Any], type[str] | type[int] | type[datetime]]] = {
    "create_time": (ModelRow.create_time, datetime),
    "name": (ModelRow.search_name, str),
    "size_bytes": (ModelRow.size_bytes, int),
}
SOURCE_KINDS = {
    "hf": "hub",
    "http": "http",
    "https": "http",
    "oci": "registry",
    "ollama": "registry",
    "quant": "quant",
    "s3": "s3",
}
"""Kind of a source by its scheme; a source without one is the name of a file."""


@dataclass(frozen=True, slots=True)
class ModelSearch:
    """Which models a list shows, and in which order. An empty field filters nothing."""

    query: str = ""
    """Part of the name or of an alias."""
    architecture: str = ""
    quantisation: str = ""
    tag: str = ""
    source_kind: str = ""
    order: str = "create_time"
    """A key of `_ORDERS`; models that are equal by it are ordered by id."""
    descending: bool = False

    @property
    def listing(self) -> Listing:
        """The list for page tokens: a token is valid for the same search only."""
        return Listing(f"models {json.dumps(astuple(self))}", (_ORDERS[self.order][1], str))

    def select(self, page: Page) -> Select[ModelRow]:
        """Return the query for a page."""
        found = select(ModelRow)
        if self.query:
            part = self.query.lower()
            alias = func.lower(ModelAliasRow.alias).contains(part, autoescape=True)
            called = exists().where(ModelAliasRow.model_uuid == ModelRow.model_uuid, alias)
            found = found.where(or_(ModelRow.search_name.contains(part, autoescape=True), called))
        equal = (ModelRow.architecture, self.architecture), (ModelRow.quantisation, self.quantisation)
        for column, value in (*equal, (ModelRow.source_kind, self.source_kind)):
            if value:
                found = found.where(column == value.lower())
        if self.tag:
            tagged = ModelTagRow.tag == self.tag.lower(), ModelTagRow.model_uuid == ModelRow.model_uuid
            found = found.where(exists().where(*tagged))
        return page.select(found, (_ORDERS[self.order][0], ModelRow.model_uuid), backwards=self.descending)

    def key(self, row: ModelRow) -> Key:
        """Return the sort key of a model."""
        return getattr(row, _ORDERS[self.order][0].key), row.model_uuid


def searchable(name: str, gguf: Mapping[str, Any], shown_source: str) -> dict[str, str]:
    """Return the columns of a model that searches compare."""
    return {
        "search_name": name.lower(),
        "architecture": str(gguf.get("architecture", "")).lower(),
        "quantisation": str(gguf.get("quantisation", "")).lower(),
        "source_kind": SOURCE_KINDS.get(shown_source.partition(":")[0], "file"),
    }


async def set_tags(session: AsyncSession, model_uuid: str, tags: Iterable[str]) -> None:
    """Replace the tags of a model."""
    await session.execute(delete(ModelTagRow).where(ModelTagRow.model_uuid == model_uuid))
    session.add_all(ModelTagRow(tag=tag, model_uuid=model_uuid) for tag in sorted({tag.lower() for tag in tags}))
