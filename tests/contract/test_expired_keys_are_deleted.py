"""Keys are deleted a documented time after they expire; until they expire, revocations that depend on them hold."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

from llamesh.kit.config import Settings
from llamesh.kit.pages import PageQuery, Pages
from services.contract.keys import KEPT_AFTER_EXPIRY, Keys
from services.contract.revocations import Revocations
from services.contract.tables import KeyRow
from tests.contract.test_committed_changes_reach_watchers import database_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MOMENT = timedelta(seconds=1)


class Clock:
    """The time, as a test sets it."""

    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        return self.time


def key(key_id: str, expire_time: datetime) -> KeyRow:
    return KeyRow(
        key_id=key_id,
        display_name="k",
        owner="ada",
        owner_uid="usr_1",
        contract_id="",
        scopes=["infer:*"],
        create_time=NOW,
        expire_time=expire_time,
        revoke_time=None,
    )


async def revoked(revocations: Revocations) -> list[str]:
    """The keys in a new watch."""
    async with asyncio.timeout(10):
        found: list[str] = []
        async for ids in revocations.watch():
            if not ids:
                break
            found += ids
        return found


async def test_a_key_is_deleted_when_it_expired_long_ago_and_its_revocation_holds_before(settings: Settings) -> None:
    clock = Clock()
    async with database_of(settings, "contract") as database:
        revocations = Revocations(database, clock, resync_seconds=None)
        keys = Keys(database, Mock(), revocations, Mock(), Mock(), clock, Mock())

        async def listed() -> list[str]:
            rows, _ = await keys.page(None, PageQuery(Pages(b"any key")))
            return [row.key_id for row in rows]

        day, year = timedelta(days=1), timedelta(days=365)
        async with database.begin() as session:
            session.add_all([key("key_day", NOW + day), key("key_year", NOW + year)])
        for key_id in ("key_day", "key_year"):
            await keys.revoke(None, key_id)
        for passed, kept, ended in (
            (day, ["key_day", "key_year"], ["key_year"]),
            (KEPT_AFTER_EXPIRY, ["key_day", "key_year"], ["key_year"]),
            (MOMENT, ["key_year"], ["key_year"]),
            # Revoked long ago, but its token has not expired.
            (NOW + year - MOMENT - (NOW + day + KEPT_AFTER_EXPIRY + MOMENT), ["key_year"], ["key_year"]),
            (MOMENT + KEPT_AFTER_EXPIRY, ["key_year"], []),
            (MOMENT, [], []),
        ):
            clock.time += passed
            await keys.prune()
            assert (await listed(), await revoked(Revocations(database, clock, None))) == (kept, ended)


def test_the_time_that_is_documented_is_the_one_in_force() -> None:
    root = Path(__file__).resolve().parents[2]
    words = f"{KEPT_AFTER_EXPIRY.days} days"
    assert f"shows an expired key for {words}" in (root / "docs/guide.md").read_text()
    assert f"expired more than {words} ago are deleted" in (root / "proto/llamesh/v1/contract.proto").read_text()
