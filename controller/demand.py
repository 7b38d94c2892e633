"""Which servers have requests waiting for them. Written by the waker, read wherever a server that somebody waits for goes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Demand:
    """Held requests, counted for each server. Belongs to one event loop."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, server_uuids: Iterable[str]) -> Iterator[None]:
        """Count one request that waits for any of these servers, until the block ends."""
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
        """Whether a request waits for this server."""
        return server_uuid in self._held
