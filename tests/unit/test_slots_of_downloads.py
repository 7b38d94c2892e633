"""Slow downloads of one user do not stop those of others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from services.download.retry_backoffs import RetryBackoffs, TransferAttempt
from services.download.slots import (
    MAX_LOCAL_OF_USER,
    MAX_OF_USER,
    MAX_RUNNING,
    SourceTurns,
    begin_next,
    holders,
    next_transfers,
    slot_words,
)
from services.download.source_holds import MAX_STILL_SECONDS, SourceHolds
from services.download.source_retries import FIRST_SECONDS, SourceRetries
from services.download.tables import TransferRow, TransferState
from services.download.worker import Worker

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(name: str) -> TransferRow:
    """A queued transfer `USER-NUMBER`, of a source of its own, or `USER-NUMBER=SOURCE[,PROJECTOR[,ADAPTER]]`."""
    uuid, _, given = name.partition("=")
    source, projector, adapter = [*given.split(","), "", ""][:3]
    return TransferRow(
        model_uuid=uuid,
        source=source or f"https://models.test/{name}.gguf",
        projector=projector,
        adapters=[["style", adapter]] if adapter else [],
        requested_by=name.partition("-")[0],
        attempt=1,
        state=TransferState.QUEUED,
        create_time=NOW,
    )


def chosen(waiting: str, running: str = "", begun: str = "") -> str:
    """The transfers that begin, if users have running transfers, and these have begun before and failed."""
    users, turns = running.split(), SourceTurns()
    for name in begun.split():
        turns.begin(row(name))
    found = next_transfers([row(name) for name in waiting.split()], users, MAX_RUNNING - len(users), turns.last)
    return " ".join(each.model_uuid for each in found)


def test_one_user_leaves_a_slot_to_others() -> None:
    assert MAX_OF_USER == MAX_RUNNING - 1
    assert chosen("ada-1 ada-2 ada-3 ada-4") == "ada-1 ada-2 ada-3"
    assert chosen("ada-4", running="ada ada ada") == ""
    assert chosen("ada-4 ben-1", running="ada ada ada") == "ben-1"


def test_users_get_slots_in_turn_and_the_first_request_first() -> None:
    assert chosen("ada-1 ada-2 ada-3 ben-1 ben-2 cleo-1") == "ada-1 ben-1 cleo-1 ada-2"
    assert chosen("ada-2 ben-1 ada-3", running="ada ada") == "ben-1 ada-2"
    assert chosen("ada-2 ben-2 cleo-1", running="ada ben ben") == "cleo-1"


def test_no_slot_no_transfer() -> None:
    assert chosen("cleo-1", running="ada ada ben ben") == ""
    assert chosen("") == ""


def test_files_of_this_machine_have_slots_of_their_own() -> None:
    stalled = [row(f"ada-{number}") for number in range(MAX_OF_USER)]
    files = [row(f"ada-{number}=file:///import/{number}.gguf") for number in range(10, 14)]
    mixed = row("ada-20=file:///import/a.gguf,https://models.test/projector.gguf")
    assert begin_next([*files, mixed], stalled, SourceTurns().last) == files[:MAX_LOCAL_OF_USER]
    assert begin_next([row("ada-30")], files[:MAX_LOCAL_OF_USER], SourceTurns().last)


def test_a_transfer_without_a_slot_says_what_it_waits_for() -> None:
    ada, ben = ([row(f"{user}-{number}") for number in range(4)] for user in ("ada", "ben"))
    file = row("ada-9=file:///import/a.gguf")
    assert "at most 3 downloads of one user run at the same time" in slot_words(ada[3], ada[:3])
    assert "at most 4 downloads run at the same time" in slot_words(row("cleo-1"), [*ada[:2], *ben[:2]])
    assert "at most 2 imports of files of one user" in slot_words(file, [file, file])
    assert slot_words(ben[0], ada[:3]) == slot_words(file, ada[:3]) == ""


def test_transfers_of_one_source_begin_one_at_a_time() -> None:
    assert chosen("ada-1=hf:a/b ada-2=hf:a/b ben-1=hf:a/b ben-2") == "ada-1 ben-2"


def test_at_a_source_another_user_comes_before_the_one_whose_transfer_has_failed() -> None:
    failed = "ada-1=hf:a/b"
    assert chosen("ada-2=hf:a/b ada-3=hf:a/b ben-1=hf:a/b", begun=failed) == "ben-1"
    assert chosen("ada-2=hf:a/b ben-1=hf:a/b", running="ben", begun=failed) == "ben-1"
    assert chosen("ada-2=hf:a/b ben-2=hf:a/b ben-3=hf:a/b", begun=f"{failed} ben-1=hf:a/b") == "ada-2"
    assert chosen("ada-2=hf:a/b ben-1=hf:a/b", running="ben ben ben", begun=failed) == "ada-2"
    assert chosen("ada-2 ben-1", begun=failed) == "ada-2 ben-1"


def test_turns_at_sources_without_transfers_are_forgotten() -> None:
    turns = SourceTurns()
    for name in ("ada-1=hf:a/b", "ada-2=hf:a/c"):
        turns.begin(row(name))
    turns.keep({"hf:a/c"})
    assert [turns.last(row(f"ada-3={source}")) for source in ("hf:a/b", "hf:a/c")] == [0, 2]


def unfetched(waiting: str, running: str = "", tried: str = "") -> str:
    """Of the waiting transfers, those that may begin."""
    waits, runs, tries = ([row(name) for name in names.split()] for names in (waiting, running, tried))
    held = holders(waits, runs, tries)
    return " ".join(each.model_uuid for each in waits if each.model_uuid not in held)


def test_a_transfer_waits_for_one_of_its_source_that_runs() -> None:
    assert unfetched("ben-1=hf:a/b ben-2", running="ada-1=hf:a/b") == "ben-2"


@pytest.mark.parametrize(
    ("running", "waiting", "held"),
    [
        ("hf:a/b,https://ada.test/p", "hf:a/b", False),
        ("hf:a/b,https://ada.test/p", "hf:a/b,none", False),
        ("hf:a/b,https://ada.test/p", "hf:a/b,https://ada.test/p", True),
        ("hf:a/b", "hf:a/b,https://ben.test/p", True),
        ("hf:a/b,none,none", "hf:a/b", True),
        ("hf:a/b,,https://ada.test/a", "hf:a/b", False),
        ("hf:a/b,,https://ada.test/a", "hf:a/b,none,https://ada.test/a", True),
    ],
)
def test_a_transfer_waits_for_no_file_that_it_does_not_want(running: str, waiting: str, held: bool) -> None:
    assert unfetched(f"ben-1={waiting}", running=f"ada-1={running}") == ("" if held else "ben-1")
    assert chosen(f"ada-1={running} ben-1={waiting}") == ("ada-1" if held else "ada-1 ben-1")


def test_a_transfer_without_progress_holds_others_for_minutes_only() -> None:
    now = 0.0
    holds = SourceHolds(lambda: now)
    assert not holds.holds("ada-1")
    holds.begin("ada-1")
    now = MAX_STILL_SECONDS - 1
    assert holds.holds("ada-1")
    holds.moved("ada-1")
    now = 2 * MAX_STILL_SECONDS - 2
    assert holds.holds("ada-1")
    assert holds.all() == ["ada-1"]
    now = 2 * MAX_STILL_SECONDS - 1
    assert not holds.holds("ada-1")
    assert holds.all() == []
    holds.moved("ada-1")
    assert holds.holds("ada-1")
    holds.end("ada-1")
    holds.moved("ada-1")
    assert not holds.holds("ada-1")


def test_the_tries_of_a_user_after_failures_hold_those_of_the_user_only() -> None:
    assert unfetched("ada-2=hf:a/b ben-1=hf:a/b ada-3", tried="ada-1=hf:a/b") == "ben-1 ada-3"


@pytest.mark.parametrize(
    ("state", "free"),
    [
        (TransferState.RUNNING, "ada-3"),
        (TransferState.VERIFYING, "ada-3"),
        (TransferState.QUEUED, "ben-1 ada-3"),
    ],
)
def test_a_transfer_of_another_process_holds_others_like_one_of_this_process(state: TransferState, free: str) -> None:
    there = row("ada-1=hf:a/b")
    there.state = state
    waiting = [row(name) for name in ("ada-2=hf:a/b", "ben-1=hf:a/b", "ada-3")]
    held = holders(waiting, [], [], [there])
    assert " ".join(each.model_uuid for each in waiting if each.model_uuid not in held) == free
    assert set(held.values()) == {"ada-1"}


def test_a_transfer_that_only_waits_holds_no_other_one_of_its_source() -> None:
    assert unfetched("ada-1=hf:a/b ben-1=hf:a/b") == "ada-1 ben-1"


def test_an_attempt_awaits_its_next_try_until_it_is_due_whatever_else_it_waits_for() -> None:
    now = 0.0
    waits, attempt = RetryBackoffs(lambda: now), TransferAttempt("ada-1", 1)
    waits.of_source[attempt] = SourceRetries(waits.clock)
    waits.of_source[attempt].next_wait(None)
    waits.wait_for_room(attempt)
    assert waits.awaits_retry(attempt)
    assert waits.awaiting_source() == ["ada-1"]
    now = FIRST_SECONDS
    assert waits.awaiting_source() == []
    assert (waits.awaits_retry(attempt), waits.seconds_left(attempt) > 0) == (False, True)


def test_an_address_whose_signature_may_expire_waits_for_no_other() -> None:
    signed = "https://models.test/m.gguf?signature=x"
    assert chosen(f"ada-1={signed} ada-2={signed}") == "ada-1 ada-2"
    assert unfetched(f"ada-2={signed}", running=f"ada-1={signed}", tried=f"ada-3={signed}") == "ada-2"


async def nothing(*_: object) -> None:
    """FAKE: do nothing."""


class Runs:
    """FAKE: transfers that never end by themselves."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.holds = SourceHolds(time.monotonic)
        self.broadcast_progress = self.write_progress = nothing

    async def broadcast_waits(self, models: Set[str], words: Mapping[str, str]) -> None:
        """Tell nobody."""

    async def run(self, attempt: TransferAttempt) -> None:
        self.begun.append(attempt.model_uuid)
        await asyncio.Event().wait()


async def test_a_download_begins_beside_slow_ones_of_another_user() -> None:
    rows = [row(f"ada-{number}") for number in range(5)]

    async def workable() -> Sequence[TransferRow]:
        return rows

    claims = SimpleNamespace(release=nothing, held_elsewhere=mock.AsyncMock(return_value=[]))
    transfers = SimpleNamespace(workable=workable, claims=claims)
    health = SimpleNamespace(usable=True, close=nothing)
    objects = SimpleNamespace(drop_holds=nothing, sweep=nothing)
    runs = Runs()
    pauses = cast("Any", SimpleNamespace(give_up_old=nothing))
    fakes = cast(
        "tuple[Any, Any, Any, Any]",
        (transfers, runs, objects, health),
    )
    worker = Worker(*fakes, RetryBackoffs(time.monotonic), None, pauses)
    try:
        await worker._follow_rows()
        rows.append(row("ben-1"))
        await worker._follow_rows()
        await asyncio.sleep(0)
        assert runs.begun == ["ada-0", "ada-1", "ada-2", "ben-1"]
    finally:
        await worker.close()
