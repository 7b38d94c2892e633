"""Waits of transfers before their next try, for a source, for the object store or for room beside other transfers, by attempt.

The waits are in memory only: after a restart every transfer may begin at once.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import NamedTuple

from services.download.source_retries import SourceRetries
from services.download.store_retries import StoreRetries
from services.download.tables import TransferRow

ROOM_SECONDS = 60.0
"""Seconds after which a transfer that waits for room tries again without the end of another one: a model may have been removed."""


class TransferAttempt(NamedTuple):
    """One attempt of a model's transfer. The number increases when a caller starts or pauses the transfer, and when the
    parts of a stopped one are given up."""

    model_uuid: str
    number: int


def attempt_of(row: TransferRow) -> TransferAttempt:
    """Return the attempt that a row is at."""
    return TransferAttempt(row.model_uuid, row.attempt)


class RetryBackoffs:
    """The retries of the attempts that have failed at least once or wait for room. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.of_store: dict[TransferAttempt, StoreRetries] = {}
        self.of_source: dict[TransferAttempt, SourceRetries] = {}
        self.unsized_bytes: dict[TransferAttempt, int] = {}
        """Bytes for which an attempt reserved room for files of unknown size when it last failed for room, with those it did not get."""
        self.too_slow: set[TransferAttempt] = set()
        """Attempts whose room another one has got, because they were too slow (`room`)."""
        self._of_room: dict[TransferAttempt, float] = {}
        """When an attempt may try again without the end of another one, by the clock."""

    def wait_for_room(self, attempt: TransferAttempt) -> None:
        """Let an attempt wait until another one gives room back, at most ROOM_SECONDS."""
        self._of_room[attempt] = self.clock() + ROOM_SECONDS

    def room_freed(self) -> None:
        """End the waits for room: an attempt has given its room back."""
        self._of_room.clear()

    def seconds_left(self, attempt: TransferAttempt) -> float:
        """Return the seconds that an attempt must still wait; 0 if it may begin."""
        room = self._of_room[attempt] - self.clock() if attempt in self._of_room else 0.0
        return max(self._retry_seconds(attempt), room)

    def awaits_retry(self, attempt: TransferAttempt) -> bool:
        """Return whether an attempt has failed because of its source or the store and its next try is not due."""
        return self._retry_seconds(attempt) > 0

    def awaiting_source(self) -> list[str]:
        """Return the models whose attempts await their next try of the source. They stay claimed by this process."""
        return [attempt.model_uuid for attempt in self.of_source if self.awaits_retry(attempt)]

    def _retry_seconds(self, attempt: TransferAttempt) -> float:
        store, source = self.of_store.get(attempt), self.of_source.get(attempt)
        return max(store.seconds_left() if store else 0.0, source.seconds_left() if source else 0.0)

    def attempts(self) -> Set[TransferAttempt]:
        """Return all attempts that have failed at least once or wait for room."""
        waiting = self.of_store.keys() | self.of_source.keys() | self.unsized_bytes.keys() | self._of_room.keys()
        return waiting | self.too_slow

    def forget(self, attempt: TransferAttempt) -> None:
        """Drop an attempt that has ended."""
        self.of_store.pop(attempt, None)
        self.of_source.pop(attempt, None)
        self.unsized_bytes.pop(attempt, None)
        self._of_room.pop(attempt, None)
        self.too_slow.discard(attempt)
