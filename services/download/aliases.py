"""Further names of models: aliases.

The table has one row for each alias, and the model's row repeats its aliases for lists. Transactions that give names run one at a time
(`lock_names`): one that gives an alias, and one that gives a name to a download, which its model will have.

Invariant: an alias is no other alias, and no id and no name of a model or of a transfer that callers see, so each of them can be started
again. Compared with names of other models, case is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, func, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from llamesh.kit.database import Database
from llamesh.kit.errors import FieldViolation, MeshError, Reason, invalid_field
from services.download.model_names import check_name
from services.download.tables import ModelAliasRow, ModelRow, TransferRow

MAX_ALIASES = 16
"""Maximum number of aliases of one model."""


class Aliases:
    """The aliases in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(self, model_uuid: str, add: Sequence[str], remove: Sequence[str]) -> ModelRow | None:
        """Take aliases away from a model, then give it others. Return the model; None if there is none. Idempotent.

        Raises MODEL_NAME_TAKEN, and INVALID_FIELD beyond MAX_ALIASES or for what is no name; then nothing is changed.
        """
        for alias in add:
            check_name("add", alias)
        async with self._database.begin() as session:
            await lock_names(self._database, session)
            model = await session.get(ModelRow, model_uuid, with_for_update=True)
            if model is None:
                return None
            kept = [alias for alias in model.aliases if alias not in remove]
            new = [alias for alias in dict.fromkeys(add) if alias not in kept]
            if len(kept) + len(new) > MAX_ALIASES:
                raise invalid_field("add", f"a model has at most {MAX_ALIASES} aliases; take some away with `remove`")
            await session.execute(
                delete(ModelAliasRow).where(ModelAliasRow.model_uuid == model_uuid, ModelAliasRow.alias.in_(remove))
            )
            for alias in new:
                await _check_free(session, alias, model_uuid)
                session.add(ModelAliasRow(alias=alias, model_uuid=model_uuid))
            model.aliases = [*kept, *new]
            return model


async def lock_names(database: Database, session: AsyncSession) -> None:
    """Make transactions that give names run one at a time. It is taken before all other locks (see `lock_bytes`)."""
    await database.lock(session, "names of models")


async def check_no_alias(session: AsyncSession, model_uuid: str, name: str) -> None:
    """Raise MODEL_NAME_TAKEN if the id or the name of a model is an alias."""
    alias, owner = ModelAliasRow.alias, ModelAliasRow.model_uuid
    query = select(ModelAliasRow).where(or_(*(_same(alias, text, owner, model_uuid) for text in (model_uuid, name))))
    found = (await session.scalars(query)).first()
    if found is not None:
        field, text = ("name", name) if found.alias.lower() == name.lower() else ("model_uuid", model_uuid)
        why = f"is an alias of the model {found.model_uuid}, in this or another case"
        raise _taken(field, text, why, found.model_uuid, found.alias)


async def remove_aliases(session: AsyncSession, model_uuid: str) -> None:
    """Remove the aliases of a model that is deleted."""
    await session.execute(delete(ModelAliasRow).where(ModelAliasRow.model_uuid == model_uuid))


async def _check_free(session: AsyncSession, alias: str, model_uuid: str) -> None:
    # One statement: a transfer becomes a model in one transaction, and must be seen as one of the two.
    def same(column: InstrumentedAttribute[str], owner: InstrumentedAttribute[str]) -> ColumnElement[bool]:
        return _same(column, alias, owner, model_uuid)

    of_alias = same(ModelAliasRow.alias, ModelAliasRow.model_uuid)
    of_model = or_(same(ModelRow.model_uuid, ModelRow.model_uuid), same(ModelRow.name, ModelRow.model_uuid))
    of_transfer = or_(
        same(TransferRow.model_uuid, TransferRow.model_uuid), same(TransferRow.name, TransferRow.model_uuid)
    )
    rows = await session.execute(
        union_all(
            select(ModelAliasRow.model_uuid, literal("alias"), ModelAliasRow.alias).where(of_alias),
            select(ModelRow.model_uuid, literal("model"), literal("")).where(of_model),
            select(TransferRow.model_uuid, literal("transfer"), literal("")).where(
                TransferRow.hidden.is_(False), of_transfer
            ),
        )
    )
    found = {kind: (owner, stored) for owner, kind, stored in rows}
    # The name or the id of a model stays taken if an alias is taken away.
    if taken := found.get("model") or found.get("alias"):
        owner, stored = taken
        raise _taken("add", alias, f"names the model {owner} already, in this or another case", owner, stored)
    if "transfer" in found:
        owner, _ = found["transfer"]
        why = f"names the download of {owner}: `llamesh downloads rm {owner}` removes its record once it has ended"
        raise _taken("add", alias, why, owner)


def _same(
    column: InstrumentedAttribute[str], text: str, owner: InstrumentedAttribute[str], model_uuid: str
) -> ColumnElement[bool]:
    """Return the condition that a column has a text, or, in a row of another model, one that differs in case only."""
    return or_(column == text, (func.lower(column) == text.lower()) & (owner != model_uuid))


def _taken(field: str, name: str, why: str, model_uuid: str, alias: str = "") -> MeshError:
    """The refusal of a name. `alias`: the stored spelling of the alias that it is; empty if it is none."""
    words = f"{name} {why}"
    return MeshError(
        Reason.ERROR_REASON_MODEL_NAME_TAKEN,
        words,
        {"name": name, "modelUuid": model_uuid, **({"alias": alias} if alias else {})},
        (FieldViolation(field, words),),
    )
