"""Keeps the hub up to date: one stream from the controller and one from the download service, for all readers together.

Invariant: after a sibling's restart its list is read anew and compared, so readers see the differences and nothing twice.
"""

from __future__ import annotations

import asyncio

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure
from llamesh.v1 import controller_pb2, download_pb2, server_pb2
from services.gateway.hub import KIND_DOWNLOADS, KIND_MODELS, KIND_SERVERS, Hub, Key, Kind
from services.gateway.siblings import Siblings

PAUSE = 0.1
"""Seconds before a stream that ended is opened again."""

LONGEST_PAUSE = 2.0
"""Seconds of pause at most, if a sibling goes on failing."""


class Feeds:
    """Reads what siblings tell of changes into the hub."""

    def __init__(self, siblings: Siblings, hub: Hub) -> None:
        self._siblings = siblings
        self._hub = hub
        self._tasks = [
            BackgroundTask(name, read, report_failure, every=PAUSE, longest=LONGEST_PAUSE)
            for name, read in (("follow servers", self._read_servers), ("follow the catalogue", self._read_catalogue))
        ]

    def start(self) -> None:
        """Begin to follow the controller and the download service."""
        for task in self._tasks:
            task.start()

    async def close(self) -> None:
        """Stop following."""
        await asyncio.gather(*(task.close() for task in self._tasks))

    async def _read_servers(self) -> None:
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
            listing.broke("controller", error)

    async def _read_catalogue(self) -> None:
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
            listing.broke("download", error)


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

    def broke(self, sibling: str, error: grpc.aio.AioRpcError) -> None:
        """A stream that had told everything ends with its sibling's process, which is no failure; one that had not is raised."""
        if not self.ended:
            raise error
        log.info("watch of a sibling ended", sibling=sibling, code=error.code().name)

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
