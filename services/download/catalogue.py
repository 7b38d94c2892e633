"""The catalogue: the models whose bytes are complete, verified and published.

Invariant: a model in the catalogue has its objects, even if several processes use the same database and store (see `unowned_objects`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import exists, select
from sqlalchemy.orm import aliased

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import PageQuery
from services.download.aliases import Aliases
from services.download.model_search import ModelSearch
from services.download.sources.source import FileRole
from services.download.tables import UNENDED, ModelFileRow, ModelRow, TransferRow, TransferState


class Catalogue:
    """The models in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._aliases = Aliases(database)

    async def get(self, model_uuid: str) -> ModelRow:
        """Return a model. Raises MODEL_NOT_FOUND, or MODEL_NOT_READY while it is fetched."""
        async with self._database.read() as session:
            model = await session.get(ModelRow, model_uuid)
        if model is not None:
            return model
        # The transfer first: a model that is recorded between the two reads is found then. In the other order it would seem that the
        # transfer has succeeded and there is no model.
        async with self._database.read() as session:
            transfer = await session.get(TransferRow, model_uuid)
        async with self._database.read() as session:
            model = await session.get(ModelRow, model_uuid)
        if model is None:
            raise absent(model_uuid, transfer)
        return model

    async def page(self, search: ModelSearch, page_query: PageQuery) -> tuple[Sequence[ModelRow], str]:
        """Return a page of the models that a search finds, in its order, and the token of the next page."""
        page = page_query.of(search.listing)
        async with self._database.read() as session:
            rows = (await session.scalars(search.select(page))).all()
        return page.cut(rows, search.key)

    async def all(self) -> Sequence[ModelRow]:
        """Return all models by creation time."""
        async with self._database.read() as session:
            return (await session.scalars(select(ModelRow).order_by(ModelRow.create_time))).all()

    async def models_of_digests(self, digests: Collection[str]) -> dict[str, str]:
        """Return the id of a model for each of these SHA-256 that is that of the one file of the weights of a model."""
        more = aliased(ModelFileRow)
        query = select(ModelFileRow.sha256, ModelFileRow.model_uuid).where(
            ModelFileRow.sha256.in_(digests),
            ModelFileRow.problem == "",
            ModelFileRow.role == FileRole.WEIGHTS,
            ~exists().where(
                more.model_uuid == ModelFileRow.model_uuid,
                more.role == FileRole.WEIGHTS,
                more.number != ModelFileRow.number,
            ),
        )
        async with self._database.read() as session:
            return {row.sha256: row.model_uuid for row in (await session.execute(query)).all()}

    async def change_aliases(self, model_uuid: str, add: Sequence[str], remove: Sequence[str]) -> ModelRow:
        """See Aliases.change. Raises the errors of `get` too."""
        model = await self._aliases.change(model_uuid, add, remove)
        return model if model is not None else await self.get(model_uuid)

    async def existing(self, model_uuids: Collection[str]) -> set[str]:
        """Return those of the given ids that models have."""
        async with self._database.read() as session:
            query = select(ModelRow.model_uuid).where(ModelRow.model_uuid.in_(model_uuids))
            return set((await session.scalars(query)).all())


def absent(model_uuid: str, transfer: TransferRow | None) -> MeshError:
    """Return the error for a model that is not in the catalogue: MODEL_NOT_READY while it is fetched, else MODEL_NOT_FOUND."""
    if transfer is not None and transfer.state in UNENDED:
        why = "the download of {} is paused" if transfer.state == TransferState.PAUSED else "{} is still being fetched"
        return MeshError(Reason.ERROR_REASON_MODEL_NOT_READY, why.format(model_uuid), {"modelUuid": model_uuid})
    return MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, f"there is no model {model_uuid}", {"modelUuid": model_uuid})
