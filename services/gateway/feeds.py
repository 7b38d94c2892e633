"""Keeps the hub up to date: one stream from the controller and one from the download service, for all readers together.

Invariant: after a sibling's restart its list is read anew and compared, so readers see the differences and nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc

from llamesh.kit.logs import log
from llamesh.v1 import controller_pb2, download_pb2, server_pb2
from services.gateway.hub import KIND_DOWNLOADS, KIND_MODELS, KIND_SERVERS, Hub, Key, Kind
from services.gateway.siblings import Siblings

FIRST_PAUSE = 0.1
"""Seconds before a stream that ended is opened again; doubled each time in a row."""

LONGEST_PAUSE = 2.0
"""Seconds of pause at most."""


class Feeds:
    """Reads what siblings tell of changes into the hub."""

    def __init__(self, siblings: Siblings, hub: Hub) -> None:
        self._siblings = siblings
        self._hub = hub

    async def follow_servers(self) -> None:
        """Follow the controller until cancelled."""
        await _follow(self._read_servers)

    async def follow_catalogue(self) -> None:
        """Follow the download service until cancelled."""
        await _follow(self._read_catalogue)

    async def _read_servers(self) -> bool:
        listing = _Listing(self._hub, KIND_SERVERS)
        try:
            stream = self._siblings.controller.WatchServers(controller_pb2.WatchServersRequest(), wait_for_ready=True)
            async for item in stream:
                match item.WhichOneof("change"):
                    case "server":
                        listing.saw(KIND_SERVERS, item.server.server_uuid)
                        self._hub.put(KIND_SERVERS, item.server.server_uuid, item.server)
                    case "removed":
                        self._hub.remove(KIND_SERVERS, item.removed.server_uuid, item.removed)
                    case "synced":
                        listing.end()
        except grpc.aio.AioRpcError as error:
            log.info("watch of a sibling ended", sibling="controller", code=error.code().name)
        return listing.ended

    async def _read_catalogue(self) -> bool:
        listing = _Listing(self._hub, KIND_DOWNLOADS, KIND_MODELS)
        try:
            stream = self._siblings.catalogue.WatchCatalogue(download_pb2.WatchCatalogueRequest(), wait_for_ready=True)
            async for item in stream:
                match item.WhichOneof("change"):
                    case "download":
                        listing.saw(KIND_DOWNLOADS, item.download.model_uuid)
                        self._hub.put(KIND_DOWNLOADS, item.download.model_uuid, item.download)
                    case "model":
                        listing.saw(KIND_MODELS, item.model.model_uuid)
                        self._hub.put(KIND_MODELS, item.model.model_uuid, item.model)
                    case "removed_model_uuid":
                        self._hub.remove(KIND_MODELS, item.removed_model_uuid)
                    case "synced":
                        listing.end()
        except grpc.aio.AioRpcError as error:
            log.info("watch of a sibling ended", sibling="download", code=error.code().name)
        return listing.ended


async def _follow(read: Callable[[], Awaitable[bool]]) -> None:
    """Read again whenever a stream ends; `read` says whether it came as far as `synced`."""
    pause = FIRST_PAUSE
    while True:
        if await read():
            pause = FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


class _Listing:
    """What a sibling names before `synced`: what the hub knows beyond it is gone."""

    def __init__(self, hub: Hub, *kinds: Kind) -> None:
        self._hub = hub
        self._kinds = kinds
        self._seen: set[Key] = set()
        self.ended = False

    def saw(self, kind: Kind, name: str) -> None:
        if not self.ended:
            self._seen.add((kind, name))

    def end(self) -> None:
        self.ended = True
        for kind in self._kinds:
            for name in self._hub.live(kind):
                if (kind, name) not in self._seen:
                    self._forget(kind, name)
        self._seen.clear()
        self._hub.set_synced(self._kinds)

    def _forget(self, kind: Kind, name: str) -> None:
        entry = self._hub.get((kind, name))
        last = entry.object if entry else None
        if isinstance(last, server_pb2.Server):
            stopped = server_pb2.Server()
            stopped.CopyFrom(last)
            stopped.state = server_pb2.SERVER_STATE_STOPPED
            stopped.ready_replicas = 0
            last = stopped
        self._hub.remove(kind, name, last)
