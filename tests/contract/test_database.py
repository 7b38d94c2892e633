"""The same tables on SQLite and on PostgreSQL: moments keep their zone, a transaction that fails leaves nothing."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from llamesh.kit.config import Settings
from llamesh.kit.database import open_database


async def test_a_transaction_that_fails_leaves_nothing(settings: Settings) -> None:
    database = open_database(settings, "probe")
    async with database.engine.begin() as connection:
        if database.schema:
            await connection.execute(text('CREATE SCHEMA "probe"'))
        await connection.execute(text("CREATE TABLE probe_row (id INTEGER PRIMARY KEY)"))
    with pytest.raises(ZeroDivisionError):
        async with database.begin() as session:
            await session.execute(text("INSERT INTO probe_row VALUES (1)"))
            raise ZeroDivisionError
    async with database.begin() as session:
        assert (await session.execute(text("SELECT count(*) FROM probe_row"))).scalar() == 0
    await database.close()


async def test_a_wrong_database_url_names_the_remedy(settings: Settings) -> None:
    broken = settings.model_copy(update={"database_url": type(settings.jwt_secret)("mysql://x/y")})
    with pytest.raises(ValueError, match="postgresql://"):
        open_database(broken, "probe")
