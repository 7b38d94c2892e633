"""A stream that breaks off goes on at the missing byte, a bounded number of times; what cannot go on is the source's error."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from services.download import continuation, source_retries
from services.download.continuation import continued
from services.download.sources import (
    SourceChangedError,
    SourceError,
    SourceObject,
    SourceSlowError,
    SourceTruncatedError,
)

DATA = bytes(range(250)) * 4


class Breaking:
    """An object whose reads each return `step` bytes and then raise `error`."""

    def __init__(self, step: int, error: SourceError, *, ranges: bool = True, size: int | None = len(DATA)) -> None:
        self.step = step
        self.error = error
        self.offsets: list[int] = []
        read = self.read if ranges else None
        self.found = SourceObject(size, "x.gguf", '"e"', self.read(0, len(DATA)), read=read)

    async def read(self, offset: int, length: int) -> AsyncIterator[bytes]:
        self.offsets.append(offset)
        if self.step:
            yield DATA[offset : offset + min(self.step, length)]
        if self.step < length:
            raise self.error


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_retries, "FIRST_SECONDS", 0.0)


async def read(source: Breaking) -> bytes:
    return b"".join([chunk async for chunk in continued(source.found, time.monotonic)])


@pytest.mark.parametrize(
    "error",
    [
        SourceTruncatedError("ended", expected=2, actual=1),
        SourceError("silent", transient=True),
        SourceError("refused", unreachable=True),
        SourceSlowError("slow"),
    ],
    ids=["truncated", "silent", "away", "slow"],
)
async def test_a_broken_stream_continues_at_its_offset(error: SourceError) -> None:
    source = Breaking(300, error)
    assert await read(source) == DATA
    assert source.offsets == [0, 300, 600, 900]


@pytest.mark.parametrize(
    "source",
    [
        Breaking(300, SourceError("broken", transient=True), ranges=False),
        Breaking(300, SourceError("broken", transient=True), size=None),
        Breaking(300, SourceError("refused")),
        Breaking(300, SourceChangedError("changed", opened="a", found="b")),
        Breaking(300, SourceError("busy", transient=True, retry_after=10_000)),
    ],
    ids=["no ranges", "no size", "for good", "changed", "much later"],
)
async def test_a_stream_that_cannot_continue_raises_the_error_of_the_source(source: Breaking) -> None:
    with pytest.raises(SourceError) as caught:
        await read(source)
    assert caught.value is source.error
    assert source.offsets == [0]


async def test_without_a_new_byte_it_is_given_up_soon() -> None:
    source = Breaking(0, SourceError("broken", transient=True))
    with pytest.raises(SourceError, match="broken"):
        await read(source)
    assert source.offsets == [0] * source_retries.MAX_TRIES


async def test_a_source_that_sends_little_each_time_is_given_up_in_the_end() -> None:
    source = Breaking(1, SourceError("broken", transient=True))
    with pytest.raises(SourceError, match="was interrupted 100 times"):
        await read(source)
    assert len(source.offsets) == continuation.MAX_CONTINUATIONS


async def test_a_source_that_stays_slow_is_given_up_although_bytes_come() -> None:
    source = Breaking(1, SourceSlowError("slow"))
    with pytest.raises(SourceSlowError):
        await read(source)
    assert len(source.offsets) == source_retries.MAX_TRIES
