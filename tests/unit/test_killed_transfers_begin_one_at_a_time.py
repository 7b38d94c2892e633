"""Of the transfers that were killed with their process one begins at a time, so that the one that kills it does not take others along."""

from __future__ import annotations

import pytest

from services.download.killed_runs import PROOF_SECONDS, Suspects, refusal
from services.download.slots import SourceTurns
from services.download.tables import TransferRow, TransferState


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def suspects(clock: Clock) -> Suspects:
    return Suspects(clock)


def row(name: str) -> TransferRow:
    """A transfer of the user before the dash: `ada-killed...` was killed with its process, others were not."""
    return TransferRow(
        model_uuid=name,
        source=f"https://models.test/{name}.gguf",
        projector="",
        adapters=[],
        requested_by=name.partition("-")[0],
        state=TransferState.QUEUED,
        claimed_by="",
        killed_runs=int("killed" in name),
    )


def begun(suspects: Suspects, due: str, running: str = "") -> str:
    """The transfers that begin, of those that are due, by time of request."""
    due_rows, running_rows = ([row(name) for name in names.split()] for names in (due, running))
    return " ".join(each.model_uuid for each in suspects.begin_next(due_rows, running_rows, SourceTurns().last))


def waits(suspects: Suspects) -> dict[str, str]:
    return {
        name: words.removeprefix("waits until the download of ").split()[0]
        for name, words in suspects.wait_words().items()
    }


def test_one_suspect_begins_beside_those_that_are_none(suspects: Suspects) -> None:
    assert begun(suspects, "ada-killed-1 ben-1 ben-killed-2 cleo-1") == "ada-killed-1 cleo-1 ben-1"


def test_the_next_suspect_begins_once_the_first_has_ended_or_run_for_a_time(suspects: Suspects, clock: Clock) -> None:
    assert begun(suspects, "ada-killed-1 ada-killed-2 ada-killed-3") == "ada-killed-1"
    assert waits(suspects) == {"ada-killed-2": "ada-killed-1", "ada-killed-3": "ada-killed-1"}
    assert begun(suspects, "ada-killed-2 ada-killed-3 ben-1", running="ada-killed-1") == "ben-1"
    assert begun(suspects, "ada-killed-2 ada-killed-3") == "ada-killed-2"
    clock.now += PROOF_SECONDS
    assert begun(suspects, "ada-killed-3", running="ada-killed-2") == "ada-killed-3"
    assert waits(suspects) == {}


def test_newer_transfers_of_a_user_do_not_take_the_slots_of_suspects_that_wait(
    suspects: Suspects, clock: Clock
) -> None:
    due = "ada-killed-1 ada-killed-2 ada-killed-3 ben-killed-4 ada-5 ada-6"
    running, order = "", list[str]()
    for _ in range(4):
        order.append(begun(suspects, due, running))
        running += f" {order[-1]}"
        due = due.replace(order[-1], "")
        clock.now += PROOF_SECONDS
    assert order == ["ada-killed-1", "ben-killed-4", "ada-killed-2", "ada-killed-3"]


def test_a_suspect_whose_user_has_no_slot_stops_no_other_one(suspects: Suspects) -> None:
    assert begun(suspects, "ada-killed-1 ben-killed-2", running="ada-1 ada-2 ada-3") == "ben-killed-2"


def test_a_suspect_that_waits_holds_no_transfer_of_its_source(suspects: Suspects) -> None:
    rows = [row(name) for name in ("ada-killed-1", "ada-killed-2", "ben-1")]
    rows[2].source = rows[1].source
    found = suspects.begin_next(rows, [], SourceTurns().last)
    assert [each.model_uuid for each in found] == ["ada-killed-1", "ben-1"]


@pytest.mark.parametrize(
    ("killed", "killed_bytes", "total", "refused"),
    [(2, 0, 0, False), (3, 0, 0, True), (3, 5, 10, True), (3, 10, 10, False), (9, 10, 10, False), (10, 10, 10, True)],
)
def test_a_transfer_that_had_all_bytes_may_be_killed_more_often(
    killed: int, killed_bytes: int, total: int, refused: bool
) -> None:
    transfer = row("ada-1")
    transfer.killed_runs, transfer.killed_bytes, transfer.bytes_total = killed, killed_bytes, total
    transfer.shown_source = transfer.source
    assert (refusal(transfer) is not None) == refused
