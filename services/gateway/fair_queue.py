"""A fair queue (start-time fair queueing) for work with few slots: groups take turns, so no group can block the others.

A caller of `turn` gets a free slot at once or waits in a future. The caller that returns a slot passes it to the next waiter in the same
step of the event loop, so a slot is never free while a caller waits.

Invariants: memory is bounded. The first request of a group comes before the second request of any other group. Known callers do not wait
behind unknown ones and do not starve them: every other slot goes to an unknown caller if one waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Requester:
    """A caller that requests a slot."""

    group: Hashable
    """Requesters with the same group share its slots."""
    known: bool
    """Whether it has logged in before."""


class QueueFullError(Exception):
    """The queue is full. Requesters whose groups have the most slots before them are refused first, unknown before known ones."""


@dataclass(slots=True)
class _Waiter:
    requester: Requester
    start: int
    """Virtual start time: the number of slots that its group gets before this one."""
    number: int
    turn: asyncio.Future[None]

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service: the smallest is next."""
        return self.start, self.number

    @property
    def claim(self) -> tuple[bool, int, int]:
        """Order of refusal: the largest is refused first if the queue is full."""
        return not self.requester.known, self.start, self.number


class FairQueue:
    """Gives `at_once` slots; at most `waiting` requesters may wait."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = at_once
        self._room = waiting
        self._waiting: list[_Waiter] = []
        self._now = 0
        self._next_of: dict[Hashable, int] = {}
        """Virtual start time of the next request of a group, if it is later than now."""
        self._numbers = count()
        self._last_was_known = False

    @asynccontextmanager
    async def turn(self, requester: Requester) -> AsyncIterator[None]:
        """Wait for a slot and hold it.

        Raises:
            QueueFullError: at once, or while it waits, if requesters with a better claim arrive.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait(requester)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, requester: Requester) -> None:
        self._forget_cancelled()
        start = max(self._now, self._next_of.get(requester.group, 0))
        waiter = _Waiter(requester, start, next(self._numbers), asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._next_of[requester.group] = start + 1
        if len(self._waiting) > self._room:
            self._refuse(max(self._waiting, key=lambda each: each.claim))
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self._pass_on()  # the slot was given in the moment of the cancellation
            raise

    def _refuse(self, waiter: _Waiter) -> None:
        self._waiting.remove(waiter)
        if waiter.start > self._now:
            self._next_of[waiter.requester.group] = waiter.start
        else:
            del self._next_of[waiter.requester.group]
        waiter.turn.set_exception(QueueFullError())

    def _forget_cancelled(self) -> None:
        self._waiting = [each for each in self._waiting if not each.turn.cancelled()]

    def _pass_on(self) -> None:
        self._forget_cancelled()
        if not self._waiting:
            self._free += 1
            self._next_of.clear()
            return
        of_kind = [each for each in self._waiting if each.requester.known is not self._last_was_known]
        waiter = min(of_kind or self._waiting, key=lambda each: each.rank)
        self._waiting.remove(waiter)
        self._last_was_known = waiter.requester.known
        self._now = max(self._now, waiter.start)
        self._next_of = {group: start for group, start in self._next_of.items() if start > self._now}
        waiter.turn.set_result(None)
