"""A copy of the objects of one path of the cluster that follows their changes.

The list is read once, then its changes are watched from its version on. A watch that ends is continued at the last version that it has
seen; if the server has forgotten that version (410), the list is read again and compared. Level-triggered: a listener learns that an
object has changed, and looks at the copy.

Invariant: `objects` is a state that the cluster has had, and never goes back to an earlier one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from llamesh.background import BackgroundTask, Report
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object

MAX_BACKOFF_SECONDS = 10.0
"""Longest pause before a list or watch that failed is tried again, in seconds."""
_REMEMBERED = 1000
_NOT_FOR_US = (403, 404)


class Informer:
    """The objects of a path, by uid. All methods belong to one event loop."""

    def __init__(
        self, api: KubernetesApi, path: str, on_change: Callable[[Object], None], report: Report, selector: str = ""
    ) -> None:
        """`on_change` is called with each object that has come, changed or gone; `report` with each failure."""
        self.synced = asyncio.Event()
        """Set once the list has been read for the first time."""
        self._api = api
        self.path = path
        self._selector = selector
        self._on_change = on_change
        self._objects: dict[str, Object] = {}
        self._gone: deque[str] = deque(maxlen=_REMEMBERED)
        """Objects that were deleted last: the answer to an earlier call may come after the event."""
        self._version = ""
        self._task = BackgroundTask(f"watch {path}", self._follow, report, longest=MAX_BACKOFF_SECONDS)

    @property
    def objects(self) -> Mapping[str, Object]:
        """The objects by uid. They must not be modified."""
        return self._objects

    def start(self) -> None:
        """Start to follow."""
        self._task.start()

    async def close(self) -> None:
        """Stop following."""
        await self._task.close()

    def take(self, found: Object) -> None:
        """Take an object that a call has returned, because its event comes later."""
        self._put(found)

    async def catch_up(self) -> None:
        """Read the list now, beside the watch. A namespace that may not be read has no objects. Raises ClusterError."""
        try:
            await self._list()
        except ClusterError as error:
            if error.status not in _NOT_FOR_US:
                raise

    async def _follow(self) -> None:
        if not self._version:
            self._version = await self._list()
            self.synced.set()
        try:
            async for kind, item in self._api.watch(self.path, self._version, self._selector):
                self._version = item["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self._drop(item)
                elif kind != "BOOKMARK":
                    self._put(item)
        except ClusterError as error:
            if not error.is_gone:
                raise
            self._version = ""

    async def _list(self) -> str:
        """Read the list and return its version. A namespace that may not be read is empty, and is tried again."""
        try:
            found, version = await self._api.all(self.path, self._selector)
        except ClusterError as error:
            if error.status in _NOT_FOR_US:
                self.synced.set()
            raise
        present = {uid_of(item) for item in found}
        for uid, item in list(self._objects.items()):
            # What an answer has brought since the list was made is younger than it.
            if uid not in present and _number(item) <= _as_number(version):
                self._drop(item)
        for item in found:
            self._put(item)
        return version

    def _put(self, item: Object) -> None:
        known = self._objects.get(uid_of(item))
        if uid_of(item) in self._gone or (known is not None and _number(item) <= _number(known)):
            return
        self._objects[uid_of(item)] = item
        self._on_change(item)

    def _drop(self, item: Object) -> None:
        if self._objects.pop(uid_of(item), None) is not None:
            self._gone.append(uid_of(item))
            self._on_change(item)


def uid_of(item: Object) -> str:
    """Return the uid of an object."""
    return str(item["metadata"]["uid"])


def _number(item: Object) -> int:
    """Return the version of an object as a number: those of one kind may be compared."""
    return _as_number(item["metadata"]["resourceVersion"])


def _as_number(version: str) -> int:
    return int(version) if version.isdecimal() else 0
