"""Changes of downloads and models, broadcast to the watchers of this process.

Invariant: a watcher holds at most one unread change of each object. A newer change replaces an unread one, so a slow reader gets fewer
messages, and its memory is bounded by the number of objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from llamesh.v1.download_pb2 import Download, WatchCatalogueResponse
from llamesh.v1.model_pb2 import Model


class Watcher:
    """The unread changes of one reader."""

    def __init__(self) -> None:
        self._unread: dict[tuple[str, str], WatchCatalogueResponse] = {}
        self._unread_event = asyncio.Event()

    def add(self, key: tuple[str, str], change: WatchCatalogueResponse) -> None:
        """Add a change; it replaces an unread change of the same object."""
        self._unread.pop(key, None)
        self._unread[key] = change
        self._unread_event.set()

    def unread_models(self) -> set[str]:
        """Return the models with an unread change: of the model, of its download or of its removal."""
        return {model_uuid for _, model_uuid in self._unread}

    def has_unread_download(self, model_uuid: str) -> bool:
        """Return whether there is an unread change of a download."""
        return ("download", model_uuid) in self._unread

    def read(self) -> Iterator[WatchCatalogueResponse]:
        """Yield the unread changes, oldest first."""
        while self._unread:
            yield self._unread.pop(next(iter(self._unread)))

    async def follow(self) -> AsyncIterator[WatchCatalogueResponse]:
        """Yield every change, oldest first, without end."""
        while True:
            await self._unread_event.wait()
            self._unread_event.clear()
            for change in self.read():
                yield change


class Changes:
    """The broadcaster. It also keeps the last change of each object."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._last: dict[tuple[str, str], WatchCatalogueResponse] = {}

    @contextmanager
    def watch(self) -> Iterator[Watcher]:
        """Yield a watcher of all changes from now on."""
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def download(self, download: Download) -> None:
        """Broadcast that a download was started or changed."""
        self._broadcast(("download", download.model_uuid), WatchCatalogueResponse(download=download))

    def model(self, model: Model) -> None:
        """Broadcast that a model was added or changed."""
        self._broadcast(("model", model.model_uuid), WatchCatalogueResponse(model=model))

    def removed(self, model_uuid: str) -> None:
        """Broadcast that a model and its download were removed."""
        self._broadcast(("model", model_uuid), WatchCatalogueResponse(removed_model_uuid=model_uuid))

    def removed_download(self, model_uuid: str) -> None:
        """Broadcast that the record of a download was removed; its model, if there is one, stays."""
        self._broadcast(("download", model_uuid), WatchCatalogueResponse(removed_download_uuid=model_uuid))

    def last_download(self, model_uuid: str) -> Download | None:
        """Return the last change of a download; None if there was none, or if the download was removed."""
        last = self._last.get(("download", model_uuid))
        return last.download if last is not None else None

    def last_model(self, model_uuid: str) -> Model | None:
        """Return the last change of a model; None if there was none, or if the model was removed."""
        last = self._last.get(("model", model_uuid))
        return last.model if last is not None else None

    def live(self, kind: str) -> set[str]:
        """Return the models ("model") or downloads ("download") that were broadcast and not removed since."""
        return {model_uuid for own, model_uuid in self._last if own == kind}

    def _broadcast(self, key: tuple[str, str], change: WatchCatalogueResponse) -> None:
        match change.WhichOneof("change"):
            case "removed_model_uuid":
                for kind in ("download", "model"):
                    self._last.pop((kind, change.removed_model_uuid), None)
            case "removed_download_uuid":
                self._last.pop(key, None)
            case _:
                self._last[key] = change
        for watcher in self._watchers:
            watcher.add(key, change)
