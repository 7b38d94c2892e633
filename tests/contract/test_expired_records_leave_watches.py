"""Ended standings and revoked keys whose tokens have all expired leave: a watch ends after a day, and the next one lists anew."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from argon2 import PasswordHasher

from llamesh.kit.clock import utc_now
from llamesh.kit.pages import Pages
from llamesh.v1 import gateway_pb2
from services.contract.keys import Keys
from services.contract.revocations import Revocations
from services.contract.tables import KeyRow
from services.gateway.passwords import Passwords
from services.gateway.standings import Standings
from services.gateway.users import UserChange, Users
from tests.contract.patience import PATIENCE
from tests.contract.test_committed_changes_reach_watchers import database_of


class Clock:
    """The time, as a test sets it."""

    def __init__(self) -> None:
        self.time = utc_now()

    def __call__(self) -> datetime:
        return self.time


async def read(stream: Any) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await anext(stream)


async def test_ended_standings_leave_once_their_tokens_have_expired(settings) -> None:
    clock = Clock()
    async with database_of(settings, "gateway") as database:
        standings = Standings(database, clock)
        passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1))
        ids = iter(["usr_1", "usr_2"])
        users = Users(database, passwords, standings, Pages(b"secret"), now=clock, new_id=ids.__next__)
        for name in ("root", "ada"):
            await users.create(name, "correct horse", gateway_pb2.ROLE_ADMIN, "")
        await users.hold("ada", "usr_2", timedelta(hours=1))
        await users.change("ada", UserChange(role=gateway_pb2.ROLE_USER))
        watch = standings.watch()
        assert list((await read(watch)).ended) == ["usr_2:1"]
        assert (await read(watch)).synced
        clock.time += timedelta(days=3)
        await users.change("ada", UserChange(contract_id="ctr_1"))
        with pytest.raises(StopAsyncIteration):
            await read(watch)
        assert list((await read(standings.watch())).ended) == []
        # Time passes, and nothing changes.
        await users.hold("ada", "usr_2", timedelta(hours=1))
        await users.change("ada", UserChange(contract_id=""))
        assert list((await read(standings.watch())).ended) == ["usr_2:3"]
        clock.time += timedelta(days=3)
        assert list((await read(standings.watch())).ended) == []


async def test_revoked_keys_leave_once_their_tokens_have_expired(settings) -> None:
    clock = Clock()
    async with database_of(settings, "contract") as database:
        revocations = Revocations(database, clock, resync_seconds=None)
        keys = Keys(database, Mock(), revocations, Mock(), Mock(), clock, Mock())

        async def revoked(key_id: str) -> None:
            fields = {
                "display_name": "k",
                "owner": "ada",
                "owner_uid": "usr_1",
                "contract_id": "",
                "scopes": ["infer:*"],
            }
            times = {"create_time": clock(), "expire_time": clock() + timedelta(hours=1), "revoke_time": None}
            async with database.begin() as session:
                session.add(KeyRow(key_id=key_id, **fields, **times))
            await keys.revoke(None, key_id)

        await revoked("key_1")
        watch = revocations.watch()
        assert [await read(watch), await read(watch)] == [["key_1"], []]
        clock.time += timedelta(hours=2)
        await revoked("key_2")
        assert await read(watch) == ["key_2"]
        clock.time += timedelta(days=1)
        await revoked("key_3")
        with pytest.raises(StopAsyncIteration):
            await read(watch)
        later = revocations.watch()
        assert [await read(later), await read(later)] == [["key_3"], []]
        clock.time += timedelta(days=1)
        assert await read(revocations.watch()) == []
