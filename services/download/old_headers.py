"""Reads the headers of models again that an earlier release fetched, so that they have the facts that this release stores.

Which facts a release knows are the fields of GgufMetadata; a model whose record lacks one is read again: its header only, at most
MAX_HEADER_BYTES, one model at a time. If a header cannot be read, its record stays as it is, and the next search, a day later or at the
next start, tries again.

Invariant: nothing but the missing facts and what is made from them changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError
from llamesh.kit.gguf import GgufError, GgufMetadata
from llamesh.kit.logs import log
from llamesh.kit.objects import ObjectDamagedError, ObjectNotFoundError, ObjectStore
from llamesh.v1 import model_pb2
from services.download.early_check import check_header
from services.download.messages import gguf_fields
from services.download.model_parts import Header
from services.download.model_search import searchable, set_tags
from services.download.tables import ModelRow

READ_AGAIN_SECONDS = 86_400.0
"""Seconds between two searches for such models; a release that knows more begins with one at its start."""
MAX_PAGE = 200
"""Maximum number of records that are looked at in one query."""


class OldHeaders:
    """Completes the records. `on_model` gets each model that was completed."""

    def __init__(self, database: Database, store: ObjectStore, on_model: Callable[[ModelRow], None]) -> None:
        self._database = database
        self._store = store
        self._on_model = on_model

    async def read_again(self) -> None:
        """Complete the record of every model that lacks facts. Raises StoreError if the store cannot be used."""
        last = ""
        while True:
            query = select(ModelRow).where(ModelRow.model_uuid > last).order_by(ModelRow.model_uuid).limit(MAX_PAGE)
            async with self._database.read() as session:
                rows = (await session.scalars(query)).all()
            for row in rows:
                if lacks_facts(row.gguf):
                    await self._complete(row)
            if len(rows) < MAX_PAGE:
                return
            last = rows[-1].model_uuid

    async def _complete(self, model: ModelRow) -> None:
        try:
            header = await self._header(model)
        except (GgufError, MeshError, ObjectDamagedError, ObjectNotFoundError) as error:
            log.warning("the header of a model cannot be read", model_uuid=model.model_uuid, error=str(error))
            return
        if header is None:
            return
        async with self._database.begin() as session:
            row = await session.get(ModelRow, model.model_uuid, with_for_update=True)
            if row is None or row.sha256 != model.sha256:
                return
            # What is known stays: of a model in parts, some facts are those of all parts.
            facts = gguf_fields(header) | row.gguf
            row.gguf = facts
            for name, value in searchable(row.name, facts, row.source).items():
                setattr(row, name, value)
            await set_tags(session, row.model_uuid, facts.get("tags", ()))
        log.info("the header of a model was read again", model_uuid=row.model_uuid)
        self._on_model(row)

    async def _header(self, model: ModelRow) -> GgufMetadata | None:
        """Return the header of a model's first file; None if it is longer than MAX_HEADER_BYTES."""
        first, found = model.files[0], list[Header]()
        await check_header(
            lambda offset, length: self._store.read(first.object_key, offset=offset, length=length),
            first.size_bytes,
            found.append,
        )
        return found[0].metadata if found else None


def lacks_facts(gguf: dict[str, Any]) -> bool:
    """Return whether a stored header was written by a release that knew fewer facts."""
    return not set(model_pb2.GgufMetadata.DESCRIPTOR.fields_by_name) <= gguf.keys()
