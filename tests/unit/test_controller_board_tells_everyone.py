"""A watcher gets the latest of everything, however slow it is, and hears of what was removed."""

from __future__ import annotations

import asyncio

from controller.board import Board
from llamesh.v1.controller_pb2 import WatchServersResponse
from llamesh.v1.server_pb2 import Server


def server(uuid: str, ready: int = 0, name: str = "smol") -> Server:
    return Server(server_uuid=uuid, model_name=name, ready_replicas=ready)


async def test_a_slow_watcher_sees_the_latest_only() -> None:
    board = Board()
    board.synced.set()
    board.put(server("a"))
    watch = board.watch()
    assert await anext(watch) == WatchServersResponse(server=server("a"))
    assert await anext(watch) == WatchServersResponse(synced=True)
    for ready in range(1, 1000):
        board.put(server("a", ready))
    board.put(server("b"))
    assert await anext(watch) == WatchServersResponse(server=server("a", 999))
    assert await anext(watch) == WatchServersResponse(server=server("b"))
    await watch.aclose()


async def test_a_removal_is_told_to_each_watcher_and_then_forgotten() -> None:
    board = Board()
    board.synced.set()
    board.put(server("a"))
    watches = [board.watch() for _ in range(2)]
    for watch in watches:
        assert [(await anext(watch)).WhichOneof("change") for _ in range(2)] == ["server", "synced"]
    board.remove(server("a"))
    for watch in watches:
        assert await anext(watch) == WatchServersResponse(removed=server("a"))
    assert board._removed == {}
    for watch in watches:
        await watch.aclose()


async def test_nobody_is_told_before_all_servers_are_known() -> None:
    board = Board()
    watch = board.watch()
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.01)
    assert not first.done()
    board.put(server("a"))
    board.synced.set()
    assert await first == WatchServersResponse(server=server("a"))
    await watch.aclose()


async def test_names_follow_their_servers() -> None:
    board = Board()
    board.put(server("a"))
    board.put(server("b"))
    assert [each.server_uuid for each in board.named("smol")] == ["a", "b"]
    board.put(server("a", name="other"))
    board.remove(server("b"))
    assert board.named("smol") == []
    assert [each.server_uuid for each in board.named("other")] == ["a"]
    assert set(board._by_name) == {"other"}


async def test_waiting_for_a_state_ends_with_it_or_with_the_time() -> None:
    board = Board()
    board.put(server("a"))
    waiting = asyncio.create_task(board.until("a", lambda found: bool(found and found.ready_replicas), 5))
    await asyncio.sleep(0)
    board.put(server("a", 1))
    assert await waiting
    assert not await board.until("a", lambda found: found is None, 0.01)
    assert board._listeners == {}
