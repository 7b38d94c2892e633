"""What runs goes on while PostgreSQL is away: engines are started again, servers fall asleep and wake, and it is written afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from controller.declared import RunState
from controller.declared_servers import DeclaredServers
from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.database_failures import DatabaseUnreachableError, unreachable
from llamesh.v1 import controller_pb2, server_pb2
from tests.contract.fake_runtime import Controller, refused, running
from tests.contract.patience import CALM_SECONDS, PATIENCE, available
from tests.own_postgres import OwnPostgres, own_postgres

SECONDS = 1.0
"""LLAMESH_DATABASE_SECONDS of tests with an outage: a call during the outage takes as long."""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with own_postgres() as running:
        yield running


@dataclass
class World:
    """A controller on a PostgreSQL that the test takes away."""

    controller: Controller
    settings: Settings
    server: OwnPostgres

    async def away(self, how: str) -> None:
        await asyncio.to_thread(self.server.stop if how == "stopped" else self.server.freeze)

    async def back(self, how: str) -> None:
        await asyncio.to_thread(self.server.start if how == "stopped" else self.server.thaw)

    async def declare(self, **spec: Any) -> Any:
        """Declare a server. A refused call may have declared it: the request id makes the repeated call idempotent."""
        return await available(lambda: self.controller.declare(request_id="the only server", **spec))

    async def until_written(self, server_uuid: str, run_state: RunState) -> None:
        """Wait until the database has it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                # A server that has only just come back may answer the first reads too late.
                with contextlib.suppress(DatabaseUnreachableError):
                    if await self._read(server_uuid) is run_state:
                        return
                await asyncio.sleep(0.05)

    async def _read(self, server_uuid: str) -> RunState:
        database = open_database(self.settings, "controller")
        try:
            return (await DeclaredServers(database).get(server_uuid)).run_state
        finally:
            await database.close()


@pytest.fixture
async def world(
    request: pytest.FixtureRequest,
    one_settings: Settings,
    server: OwnPostgres,
    start_member: Any,
    connect: Any,
    until: Any,
    tmp_path: Path,
) -> AsyncIterator[World]:
    url = await asyncio.to_thread(server.create, f"controller_{time.monotonic_ns()}")
    settings = one_settings.model_copy(
        update={"database_url": SecretStr(url), "database_seconds": getattr(request, "param", SECONDS)}
    )
    async with running(settings, start_member, connect, until, tmp_path) as controller:
        yield World(controller, settings, server)
        server.thaw()


both = pytest.mark.parametrize("how", ["stopped", "frozen"])
without_outages = pytest.mark.parametrize("world", [CALM_SECONDS], indirect=True)


@both
async def test_an_engine_that_dies_is_started_again(world: World, how: str) -> None:
    controller = world.controller
    declared = await controller.ready(await world.declare())
    await world.away(how)
    try:
        for number in (2, 3):
            controller.runtime.crash("EngineExited")
            await controller.until(lambda number=number: len(controller.runtime.launched) == number)  # type: ignore[misc]
            await controller.ready(declared)
        # What people ask for is not promised before it is kept.
        await refused(controller.declare("other"), "COMPONENT_UNAVAILABLE")
        await refused(controller.update(declared, replicas=2), "COMPONENT_UNAVAILABLE")
        assert (await controller.get(declared)).replicas == 1
    finally:
        await world.back(how)
    await available(lambda: controller.update(declared, replicas=2))
    assert (await controller.get(declared)).replicas == 2


@both
async def test_a_server_wakes_for_a_request_and_it_is_written_later(world: World, how: str) -> None:
    controller = world.controller
    declared = await controller.ready(await world.declare())
    world.controller.reconciler._store.decide_run_state(declared.server_uuid, RunState.ASLEEP_IDLE)
    world.controller.reconciler.changed(declared.server_uuid)
    await world.until_written(declared.server_uuid, RunState.ASLEEP_IDLE)
    await controller.until(lambda: not controller.runtime.alive)
    await world.away(how)
    try:
        await world.controller.reconciler.wake(declared.server_uuid)
        await controller.until(lambda: len(controller.runtime.alive) == 1)
        # Reading the rows in vain, or what is older than the decision, does not take it back.
        await asyncio.gather(world.controller.reconciler._resync_once(), return_exceptions=True)
        await controller.ready(declared)
    finally:
        await world.back(how)
    await world.until_written(declared.server_uuid, RunState.AWAKE)
    assert (await controller.get(declared)).state == server_pb2.SERVER_STATE_READY


@both
async def test_a_server_falls_asleep_when_idle_and_it_is_written_later(world: World, how: str) -> None:
    controller = world.controller
    declared = await world.declare(idle_sleep=Duration(seconds=1))
    await world.away(how)
    try:
        await controller.until(lambda: len(controller.runtime.launched) == 1)
        controller.runtime.become_ready()
        await controller.until_state(declared, server_pb2.SERVER_STATE_SLEEPING)
    finally:
        await world.back(how)
    await world.until_written(declared.server_uuid, RunState.ASLEEP_IDLE)


@without_outages
async def test_a_requested_state_is_not_undone_by_an_older_decision(world: World) -> None:
    controller = world.controller
    store = world.controller.reconciler._store
    declared = await controller.ready(await world.declare())
    # Decided, and not written when the other comes.
    assert store.decide_run_state(declared.server_uuid, RunState.ASLEEP_IDLE)
    assert await store.set_run_state(declared.server_uuid, RunState.ASLEEP_REQUESTED)
    await store.refresh()
    assert (await store.get(declared.server_uuid)).run_state is RunState.ASLEEP_REQUESTED
    await world.until_written(declared.server_uuid, RunState.ASLEEP_REQUESTED)


@without_outages
async def test_a_declaration_whose_commit_is_answered_too_late_is_repeated_and_declares_one_server(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine: the row is there, and the deadline is over."""
    begin, late = Database.begin, [1, 2]

    @asynccontextmanager
    async def answered_late(database: Database) -> AsyncIterator[AsyncSession]:
        async with begin(database) as session:
            yield session
        if late:
            late.pop()
            raise unreachable("the database did not answer in time")

    monkeypatch.setattr(Database, "begin", answered_late)
    declared = await world.declare()
    listed = await world.controller.stub.ListDeclaredServers(controller_pb2.ListDeclaredServersRequest())
    assert [server.server_uuid for server in listed.servers] == [declared.server_uuid]


@without_outages
async def test_a_change_by_someone_else_is_seen(world: World) -> None:
    controller = world.controller
    declared = await world.declare()
    assert world.settings.database_url is not None
    connection = await asyncpg.connect(world.settings.database_url.get_secret_value())
    await connection.execute("UPDATE controller.server SET rest = 'asked'")
    await connection.close()
    await world.controller.reconciler._resync_once()
    await controller.until_state(declared, server_pb2.SERVER_STATE_SLEEPING)
