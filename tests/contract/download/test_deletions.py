"""A model is deleted only if no server uses it, also if one is declared at the same time and whatever process dies in between."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from llamesh.kit.database import Database
from services.download import deletions
from tests.contract.download.conftest import FakeServers, Service
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused

FUTURE, PAST = "2999-01-01 00:00:00+00:00", "2001-01-01 00:00:00+00:00"


@pytest.fixture
async def model(service: Service, web: ModelServer) -> Service:
    """The service with the model m1."""
    web.files["a.gguf"] = model_bytes("a")
    await service.fetched("m1", web.url("a.gguf"))
    return service


class Question:
    """Holds the question of a deletion for the servers back."""

    def __init__(self, servers: FakeServers) -> None:
        self.arrived, self.answer = asyncio.Event(), asyncio.Event()
        servers.asked = self._asked

    async def _asked(self, _: str) -> None:
        self.arrived.set()
        async with asyncio.timeout(PATIENCE):
            await self.answer.wait()


async def mark(journal: Database, expires: str) -> None:
    """What a deletion leaves whose process has died."""
    async with journal.begin() as session:
        await session.execute(text(f"UPDATE model SET deletion = 'dead', deletion_expires = '{expires}'"))


async def test_a_model_in_use_stays_and_can_be_used(model: Service, servers: FakeServers) -> None:
    servers.by_model["m1"] = [f"s{number}" for number in range(20)]
    with refused("MODEL_IN_USE") as refusal:
        await model.delete("m1")
    assert refusal.metadata["servers"].split(",") == [f"s{number}" for number in range(deletions.MAX_NAMED_SERVERS)]
    assert (await model.model("m1")).model_uuid == "m1"


@pytest.mark.parametrize("used", [False, True])
async def test_who_reads_a_model_for_a_server_learns_how_its_deletion_ends(
    model: Service, servers: FakeServers, used: bool
) -> None:
    question = Question(servers)
    servers.by_model["m1"] = ["s1"] if used else []
    deletion = asyncio.ensure_future(model.delete("m1"))
    await question.arrived.wait()
    reader = asyncio.ensure_future(model.model("m1"))
    await asyncio.sleep(0.3)
    assert not reader.done(), "the deletion does not know this server"
    question.answer.set()
    if used:
        with refused("MODEL_IN_USE"):
            await deletion
        assert (await reader).model_uuid == "m1"
    else:
        await deletion
        with refused("MODEL_NOT_FOUND"):
            await reader


async def test_a_deletion_that_was_slower_than_its_mark_starts_anew(
    model: Service, servers: FakeServers, journal: Database
) -> None:
    question = Question(servers)
    deletion = asyncio.ensure_future(model.delete("m1"))
    await question.arrived.wait()
    async with journal.begin() as session:
        await session.execute(text(f"UPDATE model SET deletion_expires = '{PAST}'"))
    assert (await model.model("m1")).model_uuid == "m1"
    servers.by_model["m1"] = ["s1"]
    question.answer.set()
    with refused("MODEL_IN_USE"):
        await deletion
    assert (await model.model("m1")).model_uuid == "m1"


async def test_the_mark_of_a_dead_process_expires(
    model: Service, journal: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "DECISION_SECONDS", 0.2)
    await mark(journal, FUTURE)
    with refused("COMPONENT_UNAVAILABLE") as refusal:
        await model.model("m1")
    assert "try again in 30 seconds" in refusal.message
    await mark(journal, PAST)
    assert (await model.model("m1")).model_uuid == "m1"


async def test_a_deletion_waits_for_the_mark_of_another_one_until_it_expires(
    model: Service, journal: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "DECISION_SECONDS", 0.2)
    await mark(journal, FUTURE)
    with refused("COMPONENT_UNAVAILABLE") as refusal:
        await model.delete("m1")
    assert "try again in 30 seconds" in refusal.message
    await mark(journal, PAST)
    await model.delete("m1")
    with refused("MODEL_NOT_FOUND"):
        await model.model("m1")


async def test_deletions_at_the_same_time_delete_once_and_ask_once(model: Service, servers: FakeServers) -> None:
    asked = 0

    async def slow(_: str) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)

    async def later(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await model.delete("m1")

    servers.asked = slow
    async with asyncio.timeout(PATIENCE):
        results = await asyncio.gather(*(later(0.02 * number) for number in range(5)), return_exceptions=True)
    wrong = [result for result in results if isinstance(result, BaseException)]
    assert (len(wrong), asked) == (4, 1)
    for error in wrong:
        with refused("MODEL_NOT_FOUND"):
            raise error


async def test_a_deletion_that_waited_for_a_refused_one_asks_itself(model: Service, servers: FakeServers) -> None:
    question = Question(servers)
    servers.by_model["m1"] = ["s1"]
    first = asyncio.ensure_future(model.delete("m1"))
    await question.arrived.wait()
    second = asyncio.ensure_future(model.delete("m1"))
    await asyncio.sleep(0.2)
    assert not second.done()
    del servers.by_model["m1"]
    question.answer.set()
    with refused("MODEL_IN_USE"):
        await first
    assert (await second).model_uuid == "m1"


async def test_a_deletion_whose_mark_is_lost_each_time_ends(
    model: Service, servers: FakeServers, journal: Database
) -> None:
    asked = 0

    async def lost(_: str) -> None:
        nonlocal asked
        asked += 1
        async with journal.begin() as session:
            await session.execute(text("UPDATE model SET deletion = '', deletion_expires = NULL"))

    servers.asked = lost
    with refused("COMPONENT_UNAVAILABLE"):
        await model.delete("m1")
    assert asked == deletions.MAX_ROUNDS
    assert (await model.model("m1")).model_uuid == "m1"


async def test_without_the_controller_nothing_is_deleted_and_the_model_can_be_used(
    model: Service, servers: FakeServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "_ASK_SECONDS", 0.3)
    Question(servers)
    with refused("COMPONENT_UNAVAILABLE"):
        await model.delete("m1")
    servers.asked = None
    assert (await model.model("m1")).model_uuid == "m1"


async def test_a_store_that_does_not_answer_keeps_no_deletion_waiting(
    model: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(deletions, "REMOVAL_SECONDS", 0.1)
    monkeypatch.setattr("llamesh.kit.objects.directory.DirectoryStore.delete", never)
    async with asyncio.timeout(PATIENCE):
        assert (await model.delete("m1")).model_uuid == "m1"
    assert model.stored, "what is left is removed later"
