"""What changed, told to whoever watches: the latest state of each object, never a backlog.

A watcher that reads slowly gets fewer messages, not a longer queue: what it has not read yet is replaced by what is
newer, so its memory is bounded by the number of objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from llamesh.v1.download_pb2 import Download, WatchCatalogueResponse
from llamesh.v1.model_pb2 import Model


class Watcher:
    """One reader's unread changes."""

    def __init__(self) -> None:
        self._unread: dict[tuple[str, str], WatchCatalogueResponse] = {}
        self._told = asyncio.Event()

    def tell(self, key: tuple[str, str], change: WatchCatalogueResponse) -> None:
        """Replace what is unread about the same object."""
        self._unread.pop(key, None)
        self._unread[key] = change
        self._told.set()

    def unread_models(self) -> set[str]:
        """The models of which something is unread, be it their download or their removal."""
        return {model_uuid for _, model_uuid in self._unread}

    async def follow(self) -> AsyncIterator[WatchCatalogueResponse]:
        """Every change, oldest first, for ever."""
        while True:
            await self._told.wait()
            self._told.clear()
            while self._unread:
                yield self._unread.pop(next(iter(self._unread)))


class Changes:
    """Where changes are told and watched."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._last: dict[tuple[str, str], WatchCatalogueResponse] = {}

    @contextmanager
    def watch(self) -> Iterator[Watcher]:
        """A watcher of everything that is told from now on."""
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def download(self, download: Download) -> None:
        """Tell that a download began or changed."""
        self._tell(("download", download.model_uuid), WatchCatalogueResponse(download=download))

    def model(self, model: Model) -> None:
        """Tell that a model appeared."""
        self._tell(("model", model.model_uuid), WatchCatalogueResponse(model=model))

    def removed(self, model_uuid: str) -> None:
        """Tell that a model was removed, and its download with it."""
        self._tell(("model", model_uuid), WatchCatalogueResponse(removed_model_uuid=model_uuid))

    def last_download(self, model_uuid: str) -> Download | None:
        """What was last told of a download; None where nothing was, or it was removed."""
        last = self._last.get(("download", model_uuid))
        return last.download if last is not None else None

    def last_model(self, model_uuid: str) -> Model | None:
        """What was last told of a model; None where nothing was, or it was removed."""
        last = self._last.get(("model", model_uuid))
        return last.model if last is not None else None

    def models_told(self) -> set[str]:
        """The models that were told and not removed since."""
        return {model_uuid for kind, model_uuid in self._last if kind == "model"}

    def _tell(self, key: tuple[str, str], change: WatchCatalogueResponse) -> None:
        if change.removed_model_uuid:
            for kind in ("download", "model"):
                self._last.pop((kind, change.removed_model_uuid), None)
        else:
            self._last[key] = change
        for watcher in self._watchers:
            watcher.tell(key, change)
