"""A watcher gets the latest of everything, however slow it is, and hears of what was removed."""

from __future__ import annotations

import asyncio

from controller.status_cache import StatusCache
from llamesh.v1.controller_pb2 import WatchServersResponse
from llamesh.v1.server_pb2 import Server


def server(uuid: str, ready: int = 0, name: str = "smol") -> Server:
    return Server(server_uuid=uuid, model_name=name, ready_replicas=ready)


async def test_a_slow_watcher_sees_the_latest_only() -> None:
    statuses = StatusCache()
    statuses.synced.set()
    statuses.put(server("a"))
    watch = statuses.watch()
    assert await anext(watch) == WatchServersResponse(server=server("a"))
    assert await anext(watch) == WatchServersResponse(synced=True)
    for ready in range(1, 1000):
        statuses.put(server("a", ready))
    statuses.put(server("b"))
    assert await anext(watch) == WatchServersResponse(server=server("a", 999))
    assert await anext(watch) == WatchServersResponse(server=server("b"))
    await watch.aclose()


async def test_a_removal_is_told_to_each_watcher_and_then_forgotten() -> None:
    statuses = StatusCache()
    statuses.synced.set()
    statuses.put(server("a"))
    watches = [statuses.watch() for _ in range(2)]
    for watch in watches:
        assert [(await anext(watch)).WhichOneof("change") for _ in range(2)] == ["server", "synced"]
    statuses.remove(server("a"))
    for watch in watches:
        assert await anext(watch) == WatchServersResponse(removed=server("a"))
    assert statuses._removed == {}
    for watch in watches:
        await watch.aclose()


async def test_watchers_are_told_nothing_before_all_servers_are_known() -> None:
    statuses = StatusCache()
    watch = statuses.watch()
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.01)
    assert not first.done()
    statuses.put(server("a"))
    statuses.synced.set()
    assert await first == WatchServersResponse(server=server("a"))
    await watch.aclose()


async def test_names_follow_their_servers() -> None:
    statuses = StatusCache()
    statuses.put(server("a"))
    statuses.put(server("b"))
    assert [each.server_uuid for each in statuses.named("smol")] == ["a", "b"]
    statuses.put(server("a", name="other"))
    statuses.remove(server("b"))
    assert statuses.named("smol") == []
    assert [each.server_uuid for each in statuses.named("other")] == ["a"]
    assert set(statuses._by_name) == {"other"}


async def test_waiting_for_a_state_ends_with_it_or_with_the_time() -> None:
    statuses = StatusCache()
    statuses.put(server("a"))
    waiting = asyncio.create_task(statuses.until("a", lambda found: bool(found and found.ready_replicas), 5))
    await asyncio.sleep(0)
    statuses.put(server("a", 1))
    assert await waiting
    assert not await statuses.until("a", lambda found: found is None, 0.01)
    assert statuses._listeners == {}
