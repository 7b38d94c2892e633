"""StoreRetries with an object store is spent only while the store is of no use, and it ends."""

from __future__ import annotations

import pytest

from services.download.store_retries import StoreRetries

LONGEST = 600.0
SIZE = 1_000


class Transfer:
    """An attempt of a transfer on a clock of the test's."""

    def __init__(self) -> None:
        self.now = 5_000.0
        self.patience = StoreRetries(lambda: self.now)

    def fails(self, *, after: float, done: int, silent: float = 0.0, staged: bool = False) -> float:
        """One try: bytes come for `after` seconds, then none for `silent` seconds, then it fails. Returns what was waited."""
        self.patience.begin()
        for _ in range(10 if done else 0):
            self.now += after / 10
            self.patience.add(done // 10)
        if staged:
            self.patience.staged()
        self.now += silent
        return self.patience.failed()

    def waits(self) -> None:
        while (left := self.patience.seconds_left()) > 0:
            self.now += left


def test_time_in_which_bytes_come_costs_nothing() -> None:
    """Two setbacks of a second, eleven minutes apart, used to end a transfer; here the second try even fails a little earlier."""
    transfer = Transfer()
    transfer.fails(after=700, done=SIZE)
    transfer.waits()
    assert transfer.fails(after=660, done=SIZE - 10) == pytest.approx(0.5)


def test_a_store_that_takes_nothing_costs_the_whole_time() -> None:
    transfer = Transfer()
    assert transfer.fails(after=0, done=0, silent=100) == 100
    transfer.waits()
    assert transfer.fails(after=0, done=0, silent=501) > LONGEST


def test_a_store_that_can_be_used_late_costs_the_wait() -> None:
    transfer = Transfer()
    transfer.fails(after=1, done=SIZE)
    transfer.now += 601
    transfer.waits()
    assert transfer.fails(after=1, done=SIZE) > LONGEST


def test_the_wait_for_a_free_place_costs_nothing() -> None:
    transfer = Transfer()
    transfer.fails(after=1, done=SIZE)
    transfer.waits()
    transfer.now += 3_600
    transfer.waits()
    assert transfer.fails(after=1, done=SIZE) == pytest.approx(0.5)


def test_a_try_that_comes_further_starts_the_count_anew() -> None:
    transfer = Transfer()
    transfer.fails(after=1, done=SIZE // 2, silent=400)
    transfer.waits()
    assert transfer.fails(after=1, done=SIZE, silent=400) == 400


def test_failures_after_staging_cost_no_patience() -> None:
    """The database may be away for hours before the publication is found lost."""
    assert Transfer().fails(after=1, done=SIZE, silent=7_200, staged=True) == 0


def test_a_store_that_always_fails_at_the_end_is_given_up() -> None:
    transfer = Transfer()
    tries = 1
    while transfer.fails(after=2_400, done=SIZE, staged=True) <= LONGEST:
        transfer.waits()
        tries += 1
    assert tries == 26
