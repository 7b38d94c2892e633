"""Counts the held requests of each server. The request holder updates the counts; the start
scheduler reads them to set priorities, and `controller.wake_tasks` to end retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Demand:
    """The number of held requests by server. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, server_uuids: Iterable[str]) -> Iterator[None]:
        """Count one held request for each of these servers until the block ends."""
        names = list(server_uuids)
        self._held.update(names)
        try:
            yield
        finally:
            self._held.subtract(names)
            for name in names:
                if self._held[name] <= 0:
                    del self._held[name]

    def waits_for(self, server_uuid: str) -> bool:
        """Return whether a request is held for this server."""
        return server_uuid in self._held
