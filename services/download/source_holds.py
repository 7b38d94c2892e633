"""The running transfers that others of their source may wait for, because bytes arrive.

The worker begins and ends a hold with the task of a transfer, and the fetch (`fetches`) reports what moves. Invariant: a transfer that gets
nothing for MAX_STILL_SECONDS, whatever the reason, holds no other one until it moves again, and one whose source gives neither a digest nor
a strong ETag none at all: nobody would recognise its bytes (`present_objects`). Other processes learn it with the next renewal of its claim
(`claims`).
"""

from __future__ import annotations

from collections.abc import Callable

from services.download.present_objects import source_version
from services.download.sources import SourceObject

MAX_STILL_SECONDS = 300.0
"""Maximum number of seconds without progress for which a transfer holds others; an S3 server may copy verified bytes for minutes."""


class SourceHolds:
    """When each running transfer last moved. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._moved: dict[str, float] = {}
        self._on_release: Callable[[], None] = lambda: None

    def on_release(self, call: Callable[[], None]) -> None:
        """Set what is called when a running transfer ceases to hold others because of what its source says."""
        self._on_release = call

    def begin(self, model_uuid: str) -> None:
        """Note that a transfer begins to run."""
        self._moved[model_uuid] = self._clock()

    def moved(self, model_uuid: str) -> None:
        """Note that bytes of a transfer have arrived."""
        if model_uuid in self._moved:
            self._moved[model_uuid] = self._clock()

    def opened(self, model_uuid: str, address: str, found: SourceObject) -> None:
        """Note that the weights of a transfer are open. If their bytes cannot be recognised, it holds no other from now on."""
        if model_uuid in self._moved and not found.sha256 and not source_version(address, found):
            self.end(model_uuid)
            self._on_release()

    def end(self, model_uuid: str) -> None:
        """Note that a transfer has ended. Idempotent."""
        self._moved.pop(model_uuid, None)

    def holds(self, model_uuid: str) -> bool:
        """Return whether others may wait for a transfer."""
        moved = self._moved.get(model_uuid)
        return moved is not None and self._clock() - moved < MAX_STILL_SECONDS

    def all(self) -> list[str]:
        """Return the models for whose transfers others may wait."""
        return list(filter(self.holds, self._moved))
