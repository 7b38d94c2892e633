"""Of the transfers that were killed with their process one begins at a time, so that the one that kills it does not take others along."""

from __future__ import annotations

import pytest

from services.download.killed_runs import PROOF_SECONDS, Suspects
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
    """A transfer: `killed...` was killed with its process and has not begun since, `tried...` has begun again, others were never killed."""
    killed = name.startswith("killed")
    return TransferRow(
        model_uuid=name,
        state=TransferState.RUNNING if killed or name.startswith("stopped") else TransferState.QUEUED,
        claimed_by="me" if killed else "",
        killed_runs=int(name.startswith("tried")),
    )


def allowed(suspects: Suspects, due: str, running: str = "") -> str:
    return " ".join(each.model_uuid for each in suspects.allowed([row(name) for name in due.split()], running.split()))


def test_one_suspect_begins_beside_those_that_are_none(suspects: Suspects) -> None:
    assert allowed(suspects, "killed-1 new-1 tried-1 stopped-1 killed-2") == "killed-1 new-1 stopped-1"


def test_the_next_suspect_begins_once_the_first_has_ended_or_run_for_a_time(suspects: Suspects, clock: Clock) -> None:
    assert allowed(suspects, "killed-1 killed-2 tried-3") == "killed-1"
    assert allowed(suspects, "killed-2 tried-3 new-1", running="killed-1") == "new-1"
    assert allowed(suspects, "killed-2 tried-3") == "killed-2"
    clock.now += PROOF_SECONDS
    assert allowed(suspects, "tried-3", running="killed-2") == "tried-3"
