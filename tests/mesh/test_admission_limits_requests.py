"""Admission end to end: a real Envoy asks the real contract service, which counts a contract's requests and what they used."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.pages import PageQuery, Pages
from llamesh.kit.serving import Member
from llamesh.v1 import contract_pb2, contract_pb2_grpc, gateway_pb2_grpc
from services.contract.contracts import Contracts
from services.contract.service import new_id, run
from services.contract.tables import UsageRow
from services.contract.terms_cache import TermsCache
from services.contract.usage import Ledger
from tests.mesh.front_door import PATIENCE, FrontDoor, Received, front_door, token
from tests.mesh.http_connection import Answer
from tests.standings import FakeStandings

SERVER = "0f0c6a0e-2b0d-4b4e-9a52-7f4f7c1f8f10"
FIRST_PAGE = PageQuery(Pages(b"any key"))
USAGE = b'{"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}'


class HeldEngine:
    """A stub engine's handler that holds every request until it is let go."""

    def __init__(self) -> None:
        self.inside = 0
        self.open = asyncio.Event()

    async def __call__(self, request: Received) -> tuple[int, dict[str, str], bytes]:
        self.inside += 1
        try:
            await self.open.wait()
        finally:
            self.inside -= 1
        return 200, {}, USAGE


@dataclass
class Admitted:
    """A front door whose contract service is the real one."""

    door: FrontDoor
    member: Member
    database: Database
    contract_id: str
    held: HeldEngine
    standings: FakeStandings

    def chat(self, **more: Any) -> Awaitable[Answer]:
        bearer = token(contract=self.contract_id, jti="key_1")
        return self.door.chat(headers={"authorization": f"Bearer {bearer}", **more.pop("headers", {})}, **more)

    async def running(self) -> int:
        """Requests of the contract that the service counts now."""
        async with grpc.aio.insecure_channel(f"unix:{self.door.socket('contract')}") as channel:
            stub = contract_pb2_grpc.ContractServiceStub(channel)
            request = contract_pb2.GetContractRequest(contract_id=self.contract_id)
            claims = json.dumps({"sub": "root", "scopes": ["admin"], "iat": time.time()}).encode()
            metadata = [("x-llamesh-claims", base64.urlsafe_b64encode(claims).decode().rstrip("="))]
            contract = await stub.GetContract(request, metadata=metadata)
        return int(contract.running_requests)

    async def usage(self) -> list[UsageRow]:
        now = datetime.now(UTC)
        rows, _ = await Ledger(self.database, utc_now, new_id).page(None, now, now, FIRST_PAGE)
        return list(rows)


async def no_users(_contract_id: str) -> int:
    return 0


async def until(condition: Callable[[], Awaitable[object] | object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def admitted(tmp_path: Path) -> AsyncIterator[Admitted]:
    settings = Settings(home=tmp_path, drain_seconds=1)
    database = open_database(settings, "contract")
    await database.migrate("services.contract")
    contracts = Contracts(database, utc_now, new_id, TermsCache(database, lambda: 0.0), no_users, lambda _: None)
    contract = await contracts.create("two at once", 2, [])
    standings = FakeStandings()
    gateway = Member("gateway", settings)
    gateway_pb2_grpc.add_StandingServiceServicer_to_server(standings, gateway.server)
    telling = asyncio.create_task(gateway.serve())
    member = Member("contract", settings)
    async with front_door(running=False) as door:
        door.control.set_admission_ids("contracts", [contract.contract_id, "ctr_gone"])
        Path(door.socket("contract")).symlink_to(settings.socket("contract"))
        serving = asyncio.create_task(run(member))
        await member.started.wait()
        held = HeldEngine()
        door.serve(SERVER, await door.engine("held", held), names=("smol",))
        door.serve("1" * 8, await door.engine("free"), names=("free",))
        door.serve("2" * 8, await door.engine("metered"), names=("metered",), ask=True)
        await door.start(door.inference())
        yield Admitted(door, member, database, contract.contract_id, held, standings)
        held.open.set()
    member.stop()
    await serving
    gateway.stop()
    await telling


async def test_a_contract_holds_its_requests_to_its_limit_and_frees_each_place_at_once(admitted: Admitted) -> None:
    first = [asyncio.create_task(admitted.chat()) for _ in range(2)]
    await until(lambda: admitted.held.inside == 2)
    refused = await admitted.chat()
    assert refused.status == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["content-type"] == "application/json"
    assert (refused.error["type"], refused.error["code"]) == ("rate_limit_error", "concurrency_exceeded")
    # The limit is the contract's, whichever model is asked; others are not concerned.
    assert (await admitted.chat(model="free")).status == 429
    bearer = {"authorization": f"Bearer {token()}"}
    assert (await admitted.door.chat("free", headers=bearer)).status == 200
    admitted.held.open.set()
    assert [answer.status for answer in await asyncio.gather(*first)] == [200, 200]

    async def passes() -> bool:
        return (await admitted.chat(model="free")).status == 200

    await until(passes)


async def test_a_request_id_of_the_clients_own_buys_nothing(admitted: Admitted) -> None:
    same = {"headers": {"x-request-id": "11111111-1111-4111-8111-111111111111"}}
    first = [asyncio.create_task(admitted.chat(**same)) for _ in range(2)]
    await until(lambda: admitted.held.inside == 2)
    for _ in range(5):
        assert (await admitted.chat(**same)).status == 429
    admitted.held.open.set()
    await asyncio.gather(*first)


async def test_a_client_that_leaves_frees_its_place(admitted: Admitted) -> None:
    leaving = [asyncio.create_task(admitted.chat()) for _ in range(2)]
    await until(lambda: admitted.held.inside == 2)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)

    async def passes() -> bool:
        return (await admitted.chat(model="free")).status == 200

    await until(passes)


async def test_usage_of_plain_and_streamed_answers_comes_into_the_ledger(admitted: Admitted) -> None:
    bearer = {"authorization": f"Bearer {token(sub='bob')}"}
    for _ in range(3):
        assert (await admitted.door.chat("free", headers=bearer)).status == 200
    assert (await admitted.chat(model="free", stream=True)).status == 200
    assert (await admitted.door.chat("free", path=f"/{'1' * 8}/v1/chat/completions", headers=bearer)).status == 200
    assert (await admitted.door.chat("nothing", headers=bearer)).status == 404

    async def written() -> bool:
        return sum(row.requests for row in await admitted.usage()) == 5

    await until(written)
    rows = [
        (row.subject, row.model_name, row.contract_id, row.requests, row.prompt_tokens, row.completion_tokens)
        for row in await admitted.usage()
    ]
    assert rows == [
        ("ada", "free", admitted.contract_id, 1, 5, 3),
        ("bob", "1" * 8, "", 1, 5, 2),
        ("bob", "free", "", 3, 15, 6),
    ]


async def test_a_contract_that_is_gone_is_refused_and_a_metered_server_asks_for_everyone(admitted: Admitted) -> None:
    gone = {"authorization": f"Bearer {token(contract='ctr_gone', jti='key_2')}"}
    refused = await admitted.door.chat("free", headers=gone)
    assert (refused.status, refused.error["code"]) == (403, "contract_not_found")
    silent = {"authorization": f"Bearer {token(contract='ctr_forgotten', jti='key_3')}"}
    assert (await admitted.door.chat("metered", headers=silent)).status == 403
    assert (await admitted.door.chat("metered", headers={"authorization": f"Bearer {token()}"})).status == 200
    assert (await admitted.door.chat("metered")).status == 200


async def test_without_admission_only_limited_requests_are_refused(admitted: Admitted) -> None:
    admitted.member.stop()
    await admitted.member.stopped.wait()
    refused = await admitted.chat(model="free")
    assert (refused.status, refused.error["code"]) == (503, "admission_unavailable")
    assert (await admitted.door.chat("free", headers={"authorization": f"Bearer {token()}"})).status == 200


async def test_a_killed_envoy_leaves_no_request_counted(admitted: Admitted) -> None:
    assert (await admitted.chat(model="free")).status == 200  # its log stream is open
    first = [asyncio.create_task(admitted.chat()) for _ in range(2)]
    await until(lambda: admitted.held.inside == 2)
    assert await admitted.running() == 2
    os.kill(admitted.door.pid, signal.SIGKILL)
    await asyncio.gather(*first, return_exceptions=True)

    async def forgotten() -> bool:
        return await admitted.running() == 0

    await until(forgotten)


async def test_a_change_to_an_issued_token_counts_for_its_next_request(admitted: Admitted) -> None:
    """Envoy is told an id of what has changed; the real contract service decides."""
    bearer = {"authorization": f"Bearer {token(sub='bob', jti='key_7')}"}

    async def decided(status: int, words: str = "") -> bool:
        """Whether a request gets this status and words; the list of models, which has no limit, is refused to a bad token only."""
        answer = await admitted.door.chat("free", headers=bearer)
        listing = await admitted.door.send("GET", "/v1/models", headers=bearer)
        expected = (status, 401 if status == 401 else 200)
        return (answer.status, listing.status) == expected and words in answer.body.decode()

    assert await decided(200)
    admitted.door.control.set_admission_ids("standings", ["usr_bob:1"])
    assert await admitted.door.control.settled(PATIENCE)
    assert await decided(200)
    # The contract service is told of a change a moment after it is made.
    admitted.standings.put("bob", disabled=True)
    await until(lambda: decided(401, "The user bob is disabled."))
    admitted.standings.put("bob", disabled=False, contract_id=admitted.contract_id)
    await until(lambda: decided(200))
    first = [asyncio.create_task(admitted.door.chat(headers=bearer)) for _ in range(2)]
    await until(lambda: admitted.held.inside == 2)
    assert await decided(429, "concurrency_exceeded")
    admitted.held.open.set()
    await asyncio.gather(*first)
    admitted.standings.remove("bob")
    await until(lambda: decided(401, "The user of this token was removed."))
