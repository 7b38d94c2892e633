"""The watch cache of the gateway: the latest state of every server, download and model.

Each change gets a sequence number. A reader stores only the last number it has seen; entries are ordered by last change, so catching up
walks back from the newest. `Feeds` writes changes; each `Watches.watch` waits in `wait_beyond`, which the next change wakes, and reads with
`changed_since`. Everything runs in one event loop, so no lock is needed.

Invariants: the cache stores nothing for each reader; a slow reader gets the latest state of each object instead of every step; the cost of
reading depends on the number of changes, not on the number of objects.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from llamesh.kit.errors import MeshError, Reason
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2, server_pb2

KIND_SERVERS = gateway_pb2.WATCH_KIND_SERVERS
KIND_DOWNLOADS = gateway_pb2.WATCH_KIND_DOWNLOADS
KIND_MODELS = gateway_pb2.WATCH_KIND_MODELS
KINDS = (KIND_SERVERS, KIND_DOWNLOADS, KIND_MODELS)

MAX_REMOVALS = 1000
"""Maximum number of removals that are kept for readers that resume; a reader that has missed an older one starts again."""

Kind: TypeAlias = gateway_pb2.WatchKind.ValueType
Object: TypeAlias = server_pb2.Server | download_pb2.Download | model_pb2.Model
Key: TypeAlias = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The latest state of an object, or its last state before it was removed."""

    sequence: int
    object: Object
    removed: bool = False


class WatchCache:
    """The cache of one run of the gateway. `incarnation` is the id of the run; resume tokens contain it."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._entries: OrderedDict[Key, CacheEntry] = OrderedDict()
        self._removals: OrderedDict[Key, int] = OrderedDict()
        self._sequence = 0
        self._oldest = 0
        self._changed = asyncio.Event()
        self._synced = {kind: asyncio.Event() for kind in KINDS}

    @property
    def sequence(self) -> int:
        """Sequence number of the last change."""
        return self._sequence

    def put(self, kind: Kind, name: str, value: Object) -> None:
        """Store the state of an object, if it has changed."""
        key = (kind, name)
        known = self._entries.get(key)
        if known is None or known.removed or known.object != value:
            self._removals.pop(key, None)
            self._note(key, value, removed=False)

    def remove(self, kind: Kind, name: str, last: Object | None = None) -> None:
        """Mark an object as removed, with its last state if known."""
        key = (kind, name)
        known = self._entries.get(key)
        if known is None or known.removed:
            return
        self._note(key, last or known.object, removed=True)
        self._removals[key] = self._sequence
        if len(self._removals) > MAX_REMOVALS:
            forgotten, self._oldest = self._removals.popitem(last=False)
            del self._entries[forgotten]

    def live(self, kind: Kind) -> list[str]:
        """Return the names of the objects of a kind."""
        return [name for (own, name), entry in self._entries.items() if own == kind and not entry.removed]

    def set_synced(self, kinds: Iterable[Kind]) -> None:
        """Mark these kinds as complete."""
        for kind in kinds:
            self._synced[kind].set()

    async def until_synced(self, kinds: Iterable[Kind]) -> None:
        """Wait until these kinds are complete."""
        for kind in kinds:
            await self._synced[kind].wait()

    def token(self, sequence: int) -> str:
        """Return the resume token for a sequence number."""
        return f"{self._incarnation}.{sequence}"

    def cursor(self, token: str) -> int:
        """Return the sequence number in a resume token; RESUME_TOKEN_EXPIRED if reading cannot continue from it."""
        incarnation, _, number = token.rpartition(".")
        known = incarnation == self._incarnation and number.isascii() and number.isdigit() and len(number) < 20
        if not known or int(number) > self._sequence:
            raise _expired()
        self.check(int(number))
        return int(number)

    def check(self, cursor: int) -> None:
        """Raise RESUME_TOKEN_EXPIRED if a removal after the cursor is no longer kept."""
        if cursor < self._oldest:
            raise _expired()

    def changed_since(self, cursor: int, wanted: Callable[[Key], bool]) -> list[tuple[int, Key]]:
        """Return the objects that changed after the cursor with their sequence numbers, oldest change first."""
        changes: list[tuple[int, Key]] = []
        for key in reversed(self._entries):
            sequence = self._entries[key].sequence
            if sequence <= cursor:
                break
            if wanted(key):
                changes.append((sequence, key))
        changes.reverse()
        return changes

    def get(self, key: Key) -> CacheEntry | None:
        """Return the entry of an object; None if it is unknown or no longer kept."""
        return self._entries.get(key)

    async def wait_beyond(self, cursor: int) -> None:
        """Wait for a change after the cursor."""
        while self._sequence <= cursor:
            await self._changed.wait()

    def _note(self, key: Key, value: Object, *, removed: bool) -> None:
        self._sequence += 1
        self._entries[key] = CacheEntry(self._sequence, value, removed)
        self._entries.move_to_end(key)
        self._changed.set()
        self._changed = asyncio.Event()


def _expired() -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_RESUME_TOKEN_EXPIRED, "the watch cannot continue from there: too much has changed since"
    )
