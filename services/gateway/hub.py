"""The latest state of everything that can be watched, each with the number of its last change.

Invariant: a reader is one number, its cursor; what changed after it is found from the newest backwards. So readers cost no
memory, a slow one sees the latest state of each object instead of every step, and reading costs what changed, not what exists.
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

REMEMBERED_REMOVALS = 1000
"""Removed objects remembered for readers that resume; older cursors are refused."""

Kind: TypeAlias = gateway_pb2.WatchKind.ValueType
Object: TypeAlias = server_pb2.Server | download_pb2.Download | model_pb2.Model
Key: TypeAlias = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it is now, or as it was when it was removed."""

    sequence: int
    object: Object
    removed: bool = False


class Hub:
    """All watched objects of one life of the gateway, which `incarnation` names."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._removals: OrderedDict[Key, int] = OrderedDict()
        self._sequence = 0
        self._oldest = 0
        self._changed = asyncio.Event()
        self._synced = {kind: asyncio.Event() for kind in KINDS}

    @property
    def sequence(self) -> int:
        """Number of the last change."""
        return self._sequence

    def put(self, kind: Kind, name: str, value: Object) -> None:
        """Note the state of an object; nothing happens where it is what is known already."""
        key = (kind, name)
        known = self._entries.get(key)
        if known is None or known.removed or known.object != value:
            self._removals.pop(key, None)
            self._note(key, value, removed=False)

    def remove(self, kind: Kind, name: str, last: Object | None = None) -> None:
        """Note that an object is gone, with its last state where that is known."""
        key = (kind, name)
        known = self._entries.get(key)
        if known is None or known.removed:
            return
        self._note(key, last or known.object, removed=True)
        self._removals[key] = self._sequence
        if len(self._removals) > REMEMBERED_REMOVALS:
            forgotten, self._oldest = self._removals.popitem(last=False)
            del self._entries[forgotten]

    def live(self, kind: Kind) -> list[str]:
        """Names of the objects of a kind that are there."""
        return [name for (own, name), entry in self._entries.items() if own == kind and not entry.removed]

    def set_synced(self, kinds: Iterable[Kind]) -> None:
        """Note that everything of these kinds is known."""
        for kind in kinds:
            self._synced[kind].set()

    async def until_synced(self, kinds: Iterable[Kind]) -> None:
        """Wait until everything of these kinds is known."""
        for kind in kinds:
            await self._synced[kind].wait()

    def token(self, sequence: int) -> str:
        """The resume token after a change."""
        return f"{self._incarnation}.{sequence}"

    def cursor(self, token: str) -> int:
        """The number that a resume token carries; RESUME_TOKEN_EXPIRED where reading cannot go on from it."""
        incarnation, _, number = token.rpartition(".")
        known = incarnation == self._incarnation and number.isascii() and number.isdigit() and len(number) < 20
        if not known or int(number) > self._sequence:
            raise _expired()
        self.check(int(number))
        return int(number)

    def check(self, cursor: int) -> None:
        """RESUME_TOKEN_EXPIRED where a removal after the cursor has been forgotten."""
        if cursor < self._oldest:
            raise _expired()

    def changed_since(self, cursor: int, wanted: Callable[[Key], bool]) -> list[tuple[int, Key]]:
        """What changed after the cursor, oldest change first: each with its number."""
        changes: list[tuple[int, Key]] = []
        for key in reversed(self._entries):
            sequence = self._entries[key].sequence
            if sequence <= cursor:
                break
            if wanted(key):
                changes.append((sequence, key))
        changes.reverse()
        return changes

    def get(self, key: Key) -> Entry | None:
        """An object as it is now; None where it was forgotten."""
        return self._entries.get(key)

    async def wait_beyond(self, cursor: int) -> None:
        """Wait for a change after the cursor."""
        while self._sequence <= cursor:
            await self._changed.wait()

    def _note(self, key: Key, value: Object, *, removed: bool) -> None:
        self._sequence += 1
        self._entries[key] = Entry(self._sequence, value, removed)
        self._entries.move_to_end(key)
        self._changed.set()
        self._changed = asyncio.Event()


def _expired() -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_RESUME_TOKEN_EXPIRED, "the watch cannot go on from there: too much has changed since"
    )
