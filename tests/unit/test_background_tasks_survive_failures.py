"""A background task goes on after every failure, backs off while it fails, and ends only when it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError

from llamesh.background import MAX_BACKOFF, BackgroundTask, backoff
from llamesh.kit.errors import MeshError, Reason


class _Work:
    """Raises the given failures one by one, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.successes = 0

    async def __call__(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.successes += 1


class _Clock:
    """Pauses take no time and are noted; the task is held once `condition` is true."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self.pauses: list[float] = []
        self.reached = asyncio.Event()
        self._condition = condition

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if self._condition():
            self.reached.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device"),
        MeshError(Reason.ERROR_REASON_STORAGE_FULL, "the disk is full"),
        OperationalError("SELECT 1", {}, Exception("database is locked")),
        TimeoutError(),
        KeyError("a fault of ours"),
        RuntimeError("a fault of ours"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_goes_on_after_a_failure_of_any_kind(failure: Exception) -> None:
    work, reported = _Work(failure), []
    clock = _Clock(lambda: work.successes == 2)
    task = BackgroundTask("flush", work, lambda *said: reported.append(said), every=7, sleep=clock.sleep)
    task.start()
    await asyncio.wait_for(clock.reached.wait(), 5)
    await task.close()
    assert reported == [("flush", failure)]
    assert work.successes == 2


async def test_backs_off_while_it_fails_and_returns_to_its_pace_after_a_success() -> None:
    work = _Work(*(OSError(5, "I/O error") for _ in range(8)))
    clock = _Clock(lambda: work.successes == 1)
    task = BackgroundTask("poll", work, lambda *_: None, every=1, sleep=clock.sleep)
    task.start()
    await asyncio.wait_for(clock.reached.wait(), 5)
    assert task.failures == 0
    await task.close()
    assert clock.pauses == [1, 1, 2, 4, 8, 16, 30, 30, 1]


def test_the_backoff_is_bounded() -> None:
    assert backoff(0) == 0
    assert backoff(1) == 0.5
    assert backoff(10**6) == MAX_BACKOFF


async def test_waits_before_the_first_run_if_told_so() -> None:
    work = _Work()
    clock = _Clock(lambda: work.successes == 1)
    task = BackgroundTask("trim", work, lambda *_: None, every=3, immediately=False, sleep=clock.sleep)
    task.start()
    await asyncio.wait_for(clock.reached.wait(), 5)
    await task.close()
    assert clock.pauses == [3, 3]


async def test_close_ends_work_that_runs() -> None:
    running, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = BackgroundTask("watch", work, lambda *_: None)
    task.start()
    await running.wait()
    await task.close()
    assert ended.is_set()
    await BackgroundTask("never started", work, lambda *_: None).close()
