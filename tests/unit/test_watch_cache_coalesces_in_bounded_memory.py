"""The cache: readers are cursors; a slow one sees each object's latest state; what is kept is bounded; silence has a heartbeat."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime

import pytest

from llamesh.kit.errors import MeshError, Reason
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2, server_pb2
from services.gateway.watch import Selector, Watches
from services.gateway.watch_cache import (
    KIND_DOWNLOADS,
    KIND_MODELS,
    KIND_SERVERS,
    KINDS,
    MAX_REMOVALS,
    WatchCache,
)

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def server(name: str, replicas: int = 1) -> server_pb2.Server:
    return server_pb2.Server(server_uuid=name, replicas=replicas)


def put(cache: WatchCache, name: str, replicas: int = 1) -> None:
    cache.put(KIND_SERVERS, name, server(name, replicas))


@pytest.fixture
def cache() -> WatchCache:
    made = WatchCache("life")
    made.set_synced(KINDS)
    return made


def watches(cache: WatchCache, heartbeat: float = 60.0, clock=lambda: 0.0) -> Watches:
    return Watches(cache, clock, lambda: NOW, heartbeat=heartbeat)


def told(message: gateway_pb2.WatchResponse) -> tuple[object, ...]:
    kind = message.WhichOneof("event")
    value = getattr(message, kind)
    return (kind, value.server_uuid, value.replicas) if kind in ("server", "stopped_server") else (kind,)


async def test_a_slow_reader_sees_the_latest_state_of_each_object_once(cache: WatchCache) -> None:
    put(cache, "a"), put(cache, "b")
    reader = watches(cache).watch("ada", Selector(), "")
    assert [told(await anext(reader)) for _ in range(3)] == [("server", "a", 1), ("server", "b", 1), ("synced",)]
    for replicas in range(2, 1000):
        put(cache, "a", replicas)
    put(cache, "b", 5)
    cache.remove(KIND_SERVERS, "b")
    put(cache, "c", 1)
    seen = [told(await anext(reader)) for _ in range(3)]
    assert seen == [("server", "a", 999), ("stopped_server", "b", 5), ("server", "c", 1)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await anext(reader)


async def test_changes_during_a_round_arrive_with_the_next(cache: WatchCache) -> None:
    reader = watches(cache).watch("ada", Selector(), "")
    assert told(await anext(reader)) == ("synced",)
    put(cache, "a"), put(cache, "b")
    assert told(await anext(reader)) == ("server", "a", 1)
    put(cache, "b", 2)
    put(cache, "a", 2)
    assert [told(await anext(reader)) for _ in range(2)] == [("server", "b", 2), ("server", "a", 2)]


async def test_the_same_state_again_is_no_change(cache: WatchCache) -> None:
    put(cache, "a")
    before = cache.sequence
    put(cache, "a")
    cache.remove(KIND_SERVERS, "unknown")
    assert cache.sequence == before


async def test_every_cut_of_a_stream_can_be_resumed_without_loss(cache: WatchCache) -> None:
    """Random changes, readers cut at random messages: each ends with the true state."""
    chance = random.Random(7)
    names = [f"s{number}" for number in range(6)]
    for _ in range(60):
        known: dict[str, int] = {}
        token = ""
        for _ in range(chance.randrange(1, 5)):
            reader = watches(cache).watch("ada", Selector(kinds=frozenset([KIND_SERVERS])), token)
            for _ in range(chance.randrange(1, 8)):
                for _ in range(chance.randrange(3)):
                    name = chance.choice(names)
                    cache.remove(KIND_SERVERS, name) if chance.random() < 0.3 else put(
                        cache, name, chance.randrange(1, 99)
                    )
                try:
                    async with asyncio.timeout(0.001):
                        message = await anext(reader)
                except (TimeoutError, StopAsyncIteration):
                    break
                token = message.resume_token
                apply(known, message)
            await reader.aclose()
        reader = watches(cache).watch("ada", Selector(kinds=frozenset([KIND_SERVERS])), token)
        while (message := await anext(reader)).WhichOneof("event") != "synced":
            apply(known, message)
        await reader.aclose()
        assert known == {name: cache.get((KIND_SERVERS, name)).object.replicas for name in cache.live(KIND_SERVERS)}


def apply(known: dict[str, int], message: gateway_pb2.WatchResponse) -> None:
    match told(message):
        case ("server", name, replicas):
            known[name] = replicas
        case ("stopped_server", name, _):
            known.pop(name, None)


async def test_removals_are_remembered_so_long_and_then_old_tokens_are_refused(cache: WatchCache) -> None:
    put(cache, "kept")
    token = cache.token(cache.sequence)
    reader = watches(cache).watch("ada", Selector(), token)
    assert told(await anext(reader)) == ("synced",)
    for number in range(MAX_REMOVALS + 5):
        put(cache, f"s{number}")
        cache.remove(KIND_SERVERS, f"s{number}")
    assert len(cache.changed_since(0, lambda _: True)) == MAX_REMOVALS + 1
    with pytest.raises(MeshError) as caught:
        cache.cursor(token)
    assert caught.value.reason == Reason.ERROR_REASON_RESUME_TOKEN_EXPIRED
    with pytest.raises(MeshError):
        await anext(reader)
    fresh = watches(cache).watch("ada", Selector(), "")
    assert [told(await anext(fresh)) for _ in range(2)] == [("server", "kept", 1), ("synced",)]


async def test_an_object_that_comes_back_is_there_again(cache: WatchCache) -> None:
    put(cache, "a")
    cache.remove(KIND_SERVERS, "a")
    put(cache, "a")
    assert cache.live(KIND_SERVERS) == ["a"]
    reader = watches(cache).watch("ada", Selector(), "")
    assert told(await anext(reader)) == ("server", "a", 1)


async def test_removed_downloads_and_models_are_events(cache: WatchCache) -> None:
    cache.put(KIND_DOWNLOADS, "m", download_pb2.Download(model_uuid="m"))
    cache.put(KIND_MODELS, "m", model_pb2.Model(model_uuid="m"))
    reader = watches(cache).watch("ada", Selector(), "")
    assert [told(await anext(reader))[0] for _ in range(3)] == ["download", "model", "synced"]
    cache.remove(KIND_DOWNLOADS, "m")
    cache.remove(KIND_MODELS, "m")
    message = await anext(reader)
    assert (message.WhichOneof("event"), message.removed_download_uuid) == ("removed_download_uuid", "m")
    message = await anext(reader)
    assert (message.WhichOneof("event"), message.removed_model_uuid) == ("removed_model_uuid", "m")


async def test_a_silent_watch_beats_also_while_others_are_told_of_changes(cache: WatchCache) -> None:
    time = 0.0

    def clock() -> float:
        return time

    reader = watches(cache, heartbeat=10.0, clock=clock).watch("ada", Selector(server_uuids=frozenset(["mine"])), "")
    assert told(await anext(reader)) == ("synced",)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    for second in (4.0, 8.0):
        time = second
        put(cache, "others", int(second))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    time = 10.0
    put(cache, "others", 10)
    beat = await asyncio.wait_for(waiting, 5)
    assert (told(beat), beat.resume_token) == (("heartbeat",), cache.token(cache.sequence))


async def test_a_heartbeat_comes_by_itself(cache: WatchCache) -> None:
    loop = asyncio.get_running_loop()
    reader = watches(cache, heartbeat=0.05, clock=loop.time).watch("ada", Selector(), "")
    assert told(await anext(reader)) == ("synced",)
    begun = loop.time()
    for _ in range(3):
        assert told(await asyncio.wait_for(anext(reader), 5)) == ("heartbeat",)
    assert loop.time() - begun >= 0.14


async def test_watches_count_for_a_user_and_not_for_its_name(cache: WatchCache) -> None:
    shared = Watches(cache, lambda: 0.0, lambda: NOW, limit=1)
    first = shared.watch("ada", Selector(), "", "usr_1")
    assert (await anext(first)).synced
    later = shared.watch("ada", Selector(), "", "usr_2")
    assert (await anext(later)).synced
    with pytest.raises(MeshError, match="ada has 1 watches open"):
        await anext(shared.watch("ada", Selector(), "", "usr_2"))
    await first.aclose()
    await later.aclose()
