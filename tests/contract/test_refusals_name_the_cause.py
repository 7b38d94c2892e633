"""While rights are unknown because the gateway has no database, a refusal names the database at once: real channel, FAKE gateway."""

from __future__ import annotations

import asyncio

import pytest

from llamesh.kit import rights
from llamesh.kit.database_failures import unreachable
from llamesh.kit.errors import MeshError
from llamesh.kit.identity import read_claims
from llamesh.kit.rights import RightsReflector
from llamesh.v1 import gateway_pb2_grpc
from tests.contract.patience import PATIENCE
from tests.standings import FakeStandings


class WithoutDatabase(FakeStandings):
    """A FAKE gateway whose database does not answer until `answers` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = False

    async def WatchStandings(self, request, context):
        if not self.answers:
            raise unreachable()
        async for message in super().WatchStandings(request, context):
            yield message


async def test_a_gateway_without_a_database_is_named_as_the_database_and_not_waited_for(
    one_settings, start_member, connect, as_caller, until, monkeypatch
) -> None:
    monkeypatch.setattr(rights, "START_PATIENCE", 10 * PATIENCE)
    gateway = WithoutDatabase()
    add = gateway_pb2_grpc.add_StandingServiceServicer_to_server
    await start_member(one_settings, "gateway", lambda member: add(gateway, member.server))
    reflector = RightsReflector(connect(one_settings, "gateway"), connect(one_settings, "contract"))
    caller = read_claims(as_caller("ada", "manage", uid="usr_ada")[0][1])
    reflector.start()
    try:
        async with asyncio.timeout(PATIENCE):
            await reflector.rights.until_known(caller)
        with pytest.raises(MeshError) as refused:
            reflector.rights.of(caller)
        assert refused.value.metadata == {"component": "database"}
        gateway.answers = True
        await until(lambda: reflector.rights.users)
        assert reflector.rights.of(caller).uid == "usr_ada"
    finally:
        await reflector.close()


async def test_a_gateway_that_restarts_is_waited_for(
    one_settings, start_member, connect, as_caller, monkeypatch
) -> None:
    monkeypatch.setattr(rights, "START_PATIENCE", 10 * PATIENCE)
    reflector = RightsReflector(connect(one_settings, "gateway"), connect(one_settings, "contract"))
    caller = read_claims(as_caller("ada", "manage", uid="usr_ada")[0][1])
    reflector.start()
    try:
        settled = asyncio.create_task(reflector.rights.until_known(caller))
        await asyncio.sleep(0.1)
        assert not settled.done()
        add = gateway_pb2_grpc.add_StandingServiceServicer_to_server
        await start_member(one_settings, "gateway", lambda member: add(FakeStandings(), member.server))
        await asyncio.wait_for(settled, PATIENCE)
        assert reflector.rights.of(caller).uid == "usr_ada"
    finally:
        await reflector.close()
