"""Feeds the cache: one watch of the controller and one of the download service, for all readers together.

Two background tasks read a stream each. A stream sends everything, then `synced`, then changes. When it ends, because the other service
restarts, the task opens it again after a short pause.

Invariant: each new stream sends the full list again, which is compared with the cache. So readers see only differences, and none twice.
"""

from __future__ import annotations

import asyncio

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure
from llamesh.v1 import controller_pb2, download_pb2, server_pb2
from services.gateway.members import Members
from services.gateway.watch_cache import KIND_DOWNLOADS, KIND_MODELS, KIND_SERVERS, Key, Kind, WatchCache

PAUSE = 0.1
"""Seconds before a stream is opened again after its end."""

MAX_PAUSE = 2.0
"""Longest pause in seconds while the other service keeps failing."""


class Feeds:
    """Copies the watches of other services into the cache."""

    def __init__(self, members: Members, cache: WatchCache) -> None:
        self._members = members
        self._cache = cache
        self._tasks = [
            BackgroundTask(name, read, report_failure, every=PAUSE, longest=MAX_PAUSE)
            for name, read in (("follow servers", self._read_servers), ("follow the catalogue", self._read_catalogue))
        ]

    def start(self) -> None:
        """Start watching the controller and the download service."""
        for task in self._tasks:
            task.start()

    async def close(self) -> None:
        """Stop watching."""
        await asyncio.gather(*(task.close() for task in self._tasks))

    async def _read_servers(self) -> None:
        listing = _Listing(self._cache, KIND_SERVERS)
        try:
            stream = self._members.controller.WatchServers(controller_pb2.WatchServersRequest(), wait_for_ready=True)
            async for item in stream:
                match item.WhichOneof("change"):
                    case "server":
                        listing.add(KIND_SERVERS, item.server.server_uuid)
                        self._cache.put(KIND_SERVERS, item.server.server_uuid, item.server)
                    case "removed":
                        self._cache.remove(KIND_SERVERS, item.removed.server_uuid, item.removed)
                    case "synced":
                        listing.end()
        except grpc.aio.AioRpcError as error:
            listing.fail("controller", error)

    async def _read_catalogue(self) -> None:
        listing = _Listing(self._cache, KIND_DOWNLOADS, KIND_MODELS)
        try:
            stream = self._members.catalogue.WatchCatalogue(download_pb2.WatchCatalogueRequest(), wait_for_ready=True)
            async for item in stream:
                match item.WhichOneof("change"):
                    case "download":
                        listing.add(KIND_DOWNLOADS, item.download.model_uuid)
                        self._cache.put(KIND_DOWNLOADS, item.download.model_uuid, item.download)
                    case "model":
                        listing.add(KIND_MODELS, item.model.model_uuid)
                        self._cache.put(KIND_MODELS, item.model.model_uuid, item.model)
                    case "removed_model_uuid":
                        # The record of a download is removed with its model.
                        self._cache.remove(KIND_DOWNLOADS, item.removed_model_uuid)
                        self._cache.remove(KIND_MODELS, item.removed_model_uuid)
                    case "removed_download_uuid":
                        self._cache.remove(KIND_DOWNLOADS, item.removed_download_uuid)
                    case "synced":
                        listing.end()
        except grpc.aio.AioRpcError as error:
            listing.fail("download", error)


class _Listing:
    """The list that a stream sends before `synced`. Objects of the cache that are not in it were removed."""

    def __init__(self, cache: WatchCache, *kinds: Kind) -> None:
        self._cache = cache
        self._kinds = kinds
        self._seen: set[Key] = set()
        self.ended = False

    def add(self, kind: Kind, name: str) -> None:
        if not self.ended:
            self._seen.add((kind, name))

    def end(self) -> None:
        self.ended = True
        for kind in self._kinds:
            for name in self._cache.live(kind):
                if (kind, name) not in self._seen:
                    self._forget(kind, name)
        self._seen.clear()
        self._cache.set_synced(self._kinds)

    def fail(self, member: str, error: grpc.aio.AioRpcError) -> None:
        """Raise the error of a stream that ended before `synced`. A later end is a restart of the other service, which is no failure."""
        if not self.ended:
            raise error
        log.info("the watch of another service ended", member=member, code=error.code().name)

    def _forget(self, kind: Kind, name: str) -> None:
        entry = self._cache.get((kind, name))
        last = entry.object if entry else None
        if isinstance(last, server_pb2.Server):
            stopped = server_pb2.Server()
            stopped.CopyFrom(last)
            stopped.state = server_pb2.SERVER_STATE_STOPPED
            stopped.ready_replicas = 0
            last = stopped
        self._cache.remove(kind, name, last)
