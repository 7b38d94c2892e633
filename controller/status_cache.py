"""Cache of the latest status of every server, with watches. All parts except the reconciler read servers here.

Invariant: a watcher sees the latest status of every server eventually, and never an older one after a newer one. A slow watcher costs one
entry for each server, not one for each change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager

from llamesh.v1.controller_pb2 import WatchServersResponse
from llamesh.v1.server_pb2 import Server


class _Watcher:
    def __init__(self, present: Iterable[str]) -> None:
        self.changed: dict[str, None] = dict.fromkeys(present)
        self.wake = asyncio.Event()


class StatusCache:
    """Statuses by server. All methods belong to one event loop."""

    def __init__(self) -> None:
        self.synced = asyncio.Event()
        """Set once every declared server has been reconciled."""
        self._servers: dict[str, Server] = {}
        self._removed: dict[str, Server] = {}
        self._watchers: set[_Watcher] = set()
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._by_name: dict[str, set[str]] = {}

    def get(self, server_uuid: str) -> Server | None:
        """Return the latest status; None if the server is not declared or was not reconciled yet."""
        return self._servers.get(server_uuid)

    def all(self) -> list[Server]:
        """Return all servers, in no order."""
        return list(self._servers.values())

    def put(self, server: Server) -> None:
        """Store a server's status and notify watchers if it has changed."""
        before = self._servers.get(server.server_uuid)
        if before == server:
            return
        if before and before.model_name != server.model_name:
            self._leave_name(before)
        self._by_name.setdefault(server.model_name, set()).add(server.server_uuid)
        self._servers[server.server_uuid] = server
        self._notify(server.server_uuid)

    def remove(self, server: Server) -> None:
        """Remove a server. Watchers still get its last status."""
        if before := self._servers.pop(server.server_uuid, None):
            self._leave_name(before)
        if self._watchers:
            self._removed[server.server_uuid] = server
        self._notify(server.server_uuid)

    def named(self, model_name: str) -> list[Server]:
        """Return the servers of a model name, the oldest first."""
        servers = [self._servers[name] for name in self._by_name.get(model_name, ())]
        return sorted(servers, key=lambda server: (server.create_time.ToNanoseconds(), server.server_uuid))

    @contextmanager
    def listen(self, server_uuids: Iterable[str]) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever one of these servers changes. Clear it before you read the status."""
        names = list(server_uuids)
        changed = asyncio.Event()
        for name in names:
            self._listeners.setdefault(name, set()).add(changed)
        try:
            yield changed
        finally:
            for name in names:
                self._listeners[name].discard(changed)
                if not self._listeners[name]:
                    del self._listeners[name]

    async def until(self, server_uuid: str, condition: Callable[[Server | None], bool], timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until a server's status fulfils the condition. Return False if it does not within `timeout` seconds."""
        with self.listen((server_uuid,)) as changed:
            try:
                async with asyncio.timeout(timeout):
                    while not condition(self.get(server_uuid)):
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                return False
        return True

    async def watch(self) -> AsyncIterator[WatchServersResponse]:
        """Yield the present servers, `synced`, then every change. Changes of one server are coalesced."""
        await self.synced.wait()
        watcher = _Watcher(self._servers)
        self._watchers.add(watcher)
        try:
            for response in self._take(watcher):
                yield response
            yield WatchServersResponse(synced=True)
            while True:
                await watcher.wake.wait()
                watcher.wake.clear()
                while watcher.changed:
                    for response in self._take(watcher):
                        yield response
        finally:
            self._watchers.discard(watcher)
            self._forget_removed()

    def _take(self, watcher: _Watcher) -> list[WatchServersResponse]:
        """Return the changes since the last call, each server with its latest status."""
        responses = []
        for name in watcher.changed:
            if name in self._servers:
                responses.append(WatchServersResponse(server=self._servers[name]))
            elif name in self._removed:
                responses.append(WatchServersResponse(removed=self._removed[name]))
        watcher.changed.clear()
        self._forget_removed()
        return responses

    def _leave_name(self, server: Server) -> None:
        members = self._by_name[server.model_name]
        members.discard(server.server_uuid)
        if not members:
            del self._by_name[server.model_name]

    def _notify(self, server_uuid: str) -> None:
        for watcher in self._watchers:
            watcher.changed[server_uuid] = None
            watcher.wake.set()
        for event in self._listeners.get(server_uuid, ()):
            event.set()

    def _forget_removed(self) -> None:
        """Drop the last statuses of removed servers that every watcher has received."""
        for name in list(self._removed):
            if not any(name in watcher.changed for watcher in self._watchers):
                del self._removed[name]
