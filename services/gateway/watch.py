"""Serves watches of the cache: first the present objects, then `synced`, then changes without end.

Each call of `watch` runs in the task of its gRPC stream. It waits until the feeds are complete, sends what the cache has, and then waits in
`WatchCache.wait_beyond`, which the next change wakes; after HEARTBEAT seconds of silence it sends a heartbeat.

Invariant: each message has the token to resume after it. A reader's only state is its cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from llamesh.kit.errors import component_unavailable
from llamesh.kit.watch_limit import HEARTBEAT, MAX_WATCHES, WatchLimit
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2, server_pb2
from services.gateway.watch_cache import KIND_SERVERS, KINDS, CacheEntry, Key, Kind, WatchCache

SYNC_PATIENCE = 5.0
"""Seconds that a new watch waits for services that have not yet sent their list."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Objects that a reader wants; an empty set means all."""

    kinds: Collection[Kind] = ()
    server_uuids: frozenset[str] = frozenset()
    model_uuids: frozenset[str] = frozenset()

    def wants(self, key: Key) -> bool:
        """Whether the reader wants an object."""
        kind, name = key
        names = self.server_uuids if kind == KIND_SERVERS else self.model_uuids
        return (not self.kinds or kind in self.kinds) and (not names or name in names)


class Watches:
    """Serves watches. `clock` is monotonic, `now` is the clock for messages."""

    def __init__(
        self,
        cache: WatchCache,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        heartbeat: float = HEARTBEAT,
        limit: int = MAX_WATCHES,
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._now = now
        self._heartbeat = heartbeat
        self._limit = WatchLimit(limit)

    async def watch(
        self, subject: str, selector: Selector, resume_token: str, uid: str = ""
    ) -> AsyncGenerator[gateway_pb2.WatchResponse, None]:
        """Yield the selected objects (or those changed since the token), `synced`, then changes without end.

        Watches are counted by `uid`, or by `subject` without one.

        Raises:
            MeshError: TOO_MANY_WATCHES, RESUME_TOKEN_EXPIRED, or COMPONENT_UNAVAILABLE if another service does not answer.
        """
        with self._limit.counted(subject, uid):
            await self._until_synced(selector.kinds or KINDS)
            cursor, end = self._cache.cursor(resume_token) if resume_token else 0, self._cache.sequence
            for sequence, key in self._cache.changed_since(cursor, selector.wants):
                entry = self._cache.get(key)
                if entry is not None and (resume_token or not entry.removed):
                    # The number from the time of the list: resuming from it repeats later changes and misses none.
                    yield self._sent(response_for(key, entry), sequence)
            if resume_token:
                self._cache.check(cursor)
            yield self._sent(gateway_pb2.WatchResponse(synced=True), end)
            async for response in self._changes(selector, end):
                yield response

    async def _changes(self, selector: Selector, cursor: int) -> AsyncGenerator[gateway_pb2.WatchResponse, None]:
        last_sent = self._clock()
        while True:
            self._cache.check(cursor)
            end = self._cache.sequence
            for sequence, key in self._cache.changed_since(cursor, selector.wants):
                entry = self._cache.get(key)
                # An object that has changed again in the meantime is sent once, in the next round.
                if entry and entry.sequence == sequence:
                    yield self._sent(response_for(key, entry), sequence)
                    last_sent = self._clock()
            self._cache.check(cursor)
            cursor = end
            silence = self._heartbeat - (self._clock() - last_sent)
            if silence <= 0:
                yield self._sent(gateway_pb2.WatchResponse(heartbeat=True), cursor)
                last_sent = self._clock()
                continue
            try:
                async with asyncio.timeout(silence):
                    await self._cache.wait_beyond(cursor)
            except TimeoutError:
                continue

    def _sent(self, response: gateway_pb2.WatchResponse, sequence: int) -> gateway_pb2.WatchResponse:
        response.resume_token = self._cache.token(sequence)
        response.time.FromDatetime(self._now())
        return response

    async def _until_synced(self, kinds: Collection[Kind]) -> None:
        for kind in kinds:
            try:
                async with asyncio.timeout(SYNC_PATIENCE):
                    await self._cache.until_synced([kind])
            except TimeoutError as error:
                component = "controller" if kind == KIND_SERVERS else "download"
                raise component_unavailable(component) from error


def response_for(key: Key, entry: CacheEntry) -> gateway_pb2.WatchResponse:
    """Return the message about an object."""
    match entry.object:
        case server_pb2.Server() as server:
            return (
                gateway_pb2.WatchResponse(stopped_server=server)
                if entry.removed
                else gateway_pb2.WatchResponse(server=server)
            )
        case model_pb2.Model() as model:
            return (
                gateway_pb2.WatchResponse(removed_model_uuid=key[1])
                if entry.removed
                else gateway_pb2.WatchResponse(model=model)
            )
        case download_pb2.Download() as download:
            return (
                gateway_pb2.WatchResponse(removed_download_uuid=key[1])
                if entry.removed
                else gateway_pb2.WatchResponse(download=download)
            )
