"""Tables of earlier releases: every row is kept, users get ids, and models can be searched."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import select, text

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from services.contract.tables import KeyRow, UsageRow
from services.download.tables import ModelRow
from services.gateway.standings import ChangesRow
from services.gateway.tables import User

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def with_tables() -> bool:
    """These tests are about migrations."""
    return False


async def migrated(
    settings: Settings, service: str, before: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> Database:
    """The database of a service with rows that were written when its tables were at the version `before`."""
    from alembic import command

    upgrade = command.upgrade
    database = open_database(settings, service)
    with monkeypatch.context() as earlier:
        earlier.setattr(command, "upgrade", lambda config, to: upgrade(config, before))
        await database.migrate(f"services.{service}")
    async with database.begin() as session:
        await session.execute(text(rows), {"now": NOW.isoformat() if database.schema is None else NOW})
    await database.migrate(f"services.{service}")
    return database


async def test_users_get_ids_that_differ_and_keep_their_roles(settings, monkeypatch) -> None:
    rows = "INSERT INTO users (username, role, contract_id, password_hash, create_time, update_time) VALUES {}".format(
        ", ".join(f"('{name}', {role}, '', 'x', :now, :now)" for name, role in (("ada", 2), ("admin", 3)))
    )
    database = await migrated(settings, "gateway", "gateway_0001", rows, monkeypatch)
    async with database.read() as session:
        users = (await session.scalars(select(User).order_by(User.username))).all()
        assert await session.scalar(select(ChangesRow.number)) == 1
    await database.close()
    assert [(user.username, user.role, user.standing, user.disabled) for user in users] == [
        ("ada", 2, 1, False),
        ("admin", 3, 1, False),
    ]
    assert len({user.uid for user in users}) == 2
    assert all(user.uid.startswith("usr_") for user in users)


async def test_usage_and_keys_are_kept(settings, monkeypatch) -> None:
    rows = "INSERT INTO usage_day VALUES ('2026-11-24', 'ada', 'smol', 'ctr_1', 1, 2, 3, 4)"
    database = await migrated(settings, "contract", "contract_0002", rows, monkeypatch)
    async with database.read() as session:
        (row,) = (await session.scalars(select(UsageRow))).all()
        assert not (await session.scalars(select(KeyRow))).all()
    await database.close()
    assert (row.day, row.subject, row.model_name, row.contract_id, row.uid) == (
        *("2026-11-24", "ada", "smol", "ctr_1", ""),
    )
    assert (row.requests, row.prompt_tokens, row.completion_tokens, row.unknown_requests) == (1, 2, 3, 4)


async def test_models_of_before_the_searches_are_found_by_them(settings, monkeypatch) -> None:
    columns = "model_uuid, name, size_bytes, sha256, object_key, source, gguf, create_time"
    gguf = '{"architecture"\\:"llama","quantisation"\\:"Q8_0"}'
    sources = {"m1": "hf\\:a/b", "m2": "file\\:///a.gguf", "m3": "a.gguf", "m4": "quant\\:m"}
    values = [f"('{uuid}', 'Tiny.gguf', 1, '', '', '{source}', '{gguf}', \\:now)" for uuid, source in sources.items()]
    rows = f"INSERT INTO model ({columns}) VALUES {', '.join(values)}".replace("\\:now", ":now")
    database = await migrated(settings, "download", "download_0006", rows, monkeypatch)
    async with database.read() as session:
        models = (await session.scalars(select(ModelRow).order_by(ModelRow.model_uuid))).all()
    await database.close()
    assert [model.source_kind for model in models] == ["hub", "file", "file", "quant"]
    assert {(model.search_name, model.architecture, model.quantisation) for model in models} == {
        ("tiny.gguf", "llama", "q8_0")
    }


async def test_a_model_of_before_the_files_has_one_file_with_its_object(settings, monkeypatch) -> None:
    columns = "model_uuid, name, size_bytes, sha256, object_key, damage, problem, source, gguf, create_time"
    value = "('m1', 'Tiny.gguf', 7, 'd', 'models/k', '7:then', 'is damaged', 'a.gguf', '{}', :now)"
    rows = f"INSERT INTO model ({columns}) VALUES {value}"
    database = await migrated(settings, "download", "download_0008", rows, monkeypatch)
    async with database.read() as session:
        (model,) = (await session.scalars(select(ModelRow))).all()
    await database.close()
    assert (model.size_bytes, model.sha256, model.problem) == (7, "d", "is damaged")
    (file,) = model.files
    assert (file.number, file.role, file.name, file.size_bytes) == (1, "WEIGHTS", "Tiny.gguf", 7)
    assert (file.object_key, file.damage) == ("models/k", "7:then")
