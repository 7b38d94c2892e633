"""A limit of bandwidth holds for all transfers together, and each gets an equal share, whatever its streams and chunks are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from services.download.bandwidth import MAX_CREDIT_SECONDS, Bandwidth
from services.download.sources import SourceObject

RATE = 1000
KIB = 1 << 10


class Time:
    """FAKE: a clock that a test moves, and the calls that wait for it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._calls.append((self.now + seconds, call))

    async def go_on(self, seconds: float, late: float = 0.0) -> None:
        """Let time pass and make the calls that are due then, each `late` seconds after its time."""
        end = self.now + seconds
        await _settled()
        while due := [item for item in self._calls if item[0] + late <= end]:
            item = min(due, key=lambda item: item[0])
            self._calls.remove(item)
            self.now = max(self.now, item[0] + late)
            item[1]()
            await _settled()
        self.now = end


async def _settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def opened(chunk: int, *, local: bool = False) -> SourceObject:
    """An endless source."""

    async def endless(*_: int) -> AsyncIterator[bytes]:
        while True:
            yield bytes(chunk)

    return SourceObject(size=None, name="a", etag="", chunks=endless(), read=endless, local=local)


class Reader:
    """Reads streams of one transfer as fast as it may."""

    def __init__(self, bandwidth: Bandwidth, chunk: int, streams: int = 1) -> None:
        self.bytes = 0
        found = bandwidth.limited(opened(chunk))
        assert found.read is not None
        self.tasks = [asyncio.create_task(self._read(found.read(0, 0))) for _ in range(streams)]

    async def _read(self, chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            self.bytes += len(chunk)

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()


async def test_all_transfers_together_keep_the_limit_and_use_it() -> None:
    time = Time()
    bandwidth = Bandwidth(RATE, lambda: time.now, time.later)
    readers = [Reader(bandwidth, 100) for _ in range(7)]
    await time.go_on(50)
    assert 49 * RATE <= sum(reader.bytes for reader in readers) <= 50 * RATE + 100
    for reader in readers:
        reader.stop()


async def test_a_transfer_with_more_streams_and_larger_chunks_gets_no_more() -> None:
    time = Time()
    bandwidth = Bandwidth(RATE, lambda: time.now, time.later)
    readers = [Reader(bandwidth, 50), Reader(bandwidth, 1000, streams=8), Reader(bandwidth, 500, streams=2)]
    await time.go_on(300)
    for reader in readers:
        assert 99 * RATE <= reader.bytes <= 101 * RATE
        reader.stop()


async def test_a_transfer_that_comes_later_gets_its_share_from_then_on_and_nothing_for_before() -> None:
    time = Time()
    bandwidth = Bandwidth(RATE, lambda: time.now, time.later)
    first = Reader(bandwidth, 100)
    await time.go_on(100)
    second, before = Reader(bandwidth, 100), first.bytes
    await time.go_on(10)
    assert abs(first.bytes - before - 5 * RATE) <= 200
    assert abs(second.bytes - 5 * RATE) <= 200
    first.stop()
    await time.go_on(10)
    assert abs(second.bytes - 15 * RATE) <= 300
    second.stop()


async def test_fifty_transfers_at_once_get_equal_shares() -> None:
    time = Time()
    bandwidth = Bandwidth(RATE, lambda: time.now, time.later)
    readers = [Reader(bandwidth, 10, streams=1 + number % 4) for number in range(50)]
    await time.go_on(100)
    assert max(reader.bytes for reader in readers) - min(reader.bytes for reader in readers) <= 10
    for reader in readers:
        reader.stop()


async def test_late_timers_do_not_lower_the_rate_and_idle_time_is_not_saved() -> None:
    time = Time()
    bandwidth = Bandwidth(RATE, lambda: time.now, time.later)
    await time.go_on(1000)
    reader = Reader(bandwidth, 100)
    await time.go_on(0)
    assert reader.bytes <= 100 + MAX_CREDIT_SECONDS * RATE + 100
    await time.go_on(100, late=MAX_CREDIT_SECONDS / 2)
    assert abs(reader.bytes - 100 * RATE) <= 400
    reader.stop()


async def test_a_cancelled_read_takes_nothing_from_the_others() -> None:
    time = Time()
    bandwidth = Bandwidth(RATE, lambda: time.now, time.later)
    large, small = Reader(bandwidth, 1000 * RATE), Reader(bandwidth, 100)
    await time.go_on(1)
    large.stop()
    other = Reader(bandwidth, 1000 * RATE)
    await _settled()
    other.stop()
    await time.go_on(1001)
    before = small.bytes
    await time.go_on(10)
    assert abs(small.bytes - before - 10 * RATE) <= 200
    small.stop()


@pytest.mark.parametrize(("rate", "local"), [(0, False), (RATE, True)])
async def test_without_a_limit_and_for_files_of_this_machine_nothing_waits(rate: int, local: bool) -> None:
    found = opened(KIB, local=local)
    assert Bandwidth(rate, lambda: 0.0).limited(found) is found
