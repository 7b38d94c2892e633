"""Signing keys and revocations as the controller follows them: taken when they change, kept while their owner is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import pytest

from controller import signing
from controller.signing import SigningKeys
from llamesh.kit import reflector
from llamesh.kit.config import Settings
from llamesh.kit.revocations import RevocationReflector
from llamesh.kit.standings import StandingReflector, UserRights
from llamesh.v1.admission_pb2 import WatchRevocationsResponse
from llamesh.v1.admission_pb2_grpc import AdmissionServiceServicer, add_AdmissionServiceServicer_to_server
from llamesh.v1.gateway_pb2 import ListSigningKeysResponse
from llamesh.v1.gateway_pb2_grpc import (
    SigningKeyServiceServicer,
    add_SigningKeyServiceServicer_to_server,
    add_StandingServiceServicer_to_server,
)
from tests.contract.patience import PATIENCE
from tests.standings import FakeStandings


class Keys(SigningKeyServiceServicer):
    """Says what the test says."""

    version = "1"
    asked = 0

    async def ListSigningKeys(self, request: Any, context: Any) -> ListSigningKeysResponse:
        self.asked += 1
        return ListSigningKeysResponse(jwks_json=f"keys {self.version}", version=self.version)


class Admission(AdmissionServiceServicer):
    """A list, then whatever the test puts into the queue."""

    def __init__(self, *revoked: str) -> None:
        self.revoked = revoked
        self.further: asyncio.Queue[str] = asyncio.Queue()

    async def WatchRevocations(self, request: Any, context: Any) -> AsyncIterator[WatchRevocationsResponse]:
        yield WatchRevocationsResponse(key_ids=self.revoked)
        yield WatchRevocationsResponse(synced=True)
        while True:
            yield WatchRevocationsResponse(key_ids=[await self.further.get()])


async def test_a_rotation_is_noticed_and_a_gateway_that_is_away_changes_nothing(
    one_settings: Settings,
    start_member: Any,
    stop_member: Any,
    connect: Any,
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signing, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(signing, "DEADLINE", 0.2)
    keys, taken = Keys(), list[str]()

    def register(member: Any) -> None:
        add_SigningKeyServiceServicer_to_server(keys, member.server)

    follower = SigningKeys(connect(one_settings, "gateway"), taken.append)
    follower.start()
    member = await start_member(one_settings, "gateway", register)
    await until(lambda: keys.asked > 3 and taken)
    assert taken == ["keys 1"]
    keys.version = "2"
    await until(lambda: len(taken) == 2)
    await stop_member(member)
    await asyncio.sleep(0.3)
    await start_member(one_settings, "gateway", register)
    asked = keys.asked
    await until(lambda: keys.asked > asked)
    assert taken == ["keys 1", "keys 2"]
    await follower.close()


async def test_revoked_keys_come_at_once_and_stay_while_the_service_is_away(
    one_settings: Settings,
    start_member: Any,
    stop_member: Any,
    connect: Any,
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reflector, "RETRY_SECONDS", 0.01)
    taken: list[set[str]] = []
    follower = RevocationReflector(connect(one_settings, "contract"), lambda ids, added: taken.append(set(ids)))
    follower.start()
    assert not await follower.first(0.01)
    first = Admission("k1")
    member = await start_member(
        one_settings, "contract", lambda each: add_AdmissionServiceServicer_to_server(first, each.server)
    )
    assert await follower.first(PATIENCE)
    assert taken == [{"k1"}]
    first.further.put_nowait("k2")
    await until(lambda: taken[-1] == {"k1", "k2"})
    await stop_member(member)
    # k1 has expired meanwhile; k3 was revoked. Nothing is forgotten before the new list is whole.
    second = Admission("k2", "k3")
    await start_member(
        one_settings, "contract", lambda each: add_AdmissionServiceServicer_to_server(second, each.server)
    )
    await until(lambda: taken[-1] == {"k2", "k3"})
    assert all({"k2"} <= ids for ids in taken[1:])
    await follower.close()


async def test_users_come_at_once_stay_while_the_gateway_is_away_and_are_replaced_as_a_whole(
    one_settings: Settings,
    start_member: Any,
    stop_member: Any,
    connect: Any,
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reflector, "RETRY_SECONDS", 0.01)
    taken: list[tuple[set[str], set[str]]] = []

    def take(users: Mapping[str, UserRights], ended: Iterable[str]) -> None:
        taken.append(({user.username for user in users.values()}, set(ended)))

    first = FakeStandings()
    add = add_StandingServiceServicer_to_server
    member = await start_member(one_settings, "gateway", lambda each: add(first, each.server))
    follower = StandingReflector(connect(one_settings, "gateway"), take)
    follower.start()
    assert await follower.first(PATIENCE)
    assert taken == [({"ada", "admin", "bob", "cyn", "eve", "root"}, set())]
    first.put("bob", disabled=True)
    await until(lambda: taken[-1][1] == {"usr_bob:1"})
    first.remove("ada")
    await until(lambda: "ada" not in taken[-1][0])
    assert taken[-1][1] == {"usr_bob:1", "usr_ada:1"}
    await stop_member(member)
    # ada stays removed, until another list says otherwise as a whole.
    second = FakeStandings()
    del second.users["cyn"]
    await start_member(one_settings, "gateway", lambda each: add(second, each.server))
    await until(lambda: "cyn" not in taken[-1][0])
    assert taken[-1] == ({"ada", "admin", "bob", "eve", "root"}, set())
    assert all("ada" not in users for users, ended in taken[2:-1] if "usr_ada:1" in ended)
    await follower.close()
