"""Watch over the wire: what is there, then what changes; through restarts of members, by token, for as many as are allowed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from llamesh.v1 import controller_pb2, gateway_pb2, server_pb2
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused


@pytest.fixture
def watching(mesh, as_caller):
    """`async with watching(kinds=[...]) as next_event:` where `await next_event()` gives the next message's event."""

    @asynccontextmanager
    async def watch(subject: str = "ada", **selector):
        call = mesh.gateway.Watch(gateway_pb2.WatchRequest(**selector), metadata=as_caller(subject, "manage"))
        stream = aiter(call)

        async def next_message() -> gateway_pb2.WatchResponse:
            return await asyncio.wait_for(anext(stream), PATIENCE)

        try:
            yield next_message
        finally:
            call.cancel()

    return watch


def told(message: gateway_pb2.WatchResponse) -> tuple[str, object]:
    """An event in short: its kind and what it is about."""
    kind = message.WhichOneof("event")
    value = getattr(message, kind)
    assert message.resume_token
    assert message.time.seconds > 0
    if kind in ("server", "stopped_server"):
        return kind, (value.server_uuid, value.replicas)
    if kind == "download":
        return kind, (value.model_uuid, value.bytes_done)
    return kind, value.model_uuid if kind == "model" else value


def put(mesh, server_uuid: str, replicas: int) -> None:
    mesh.controller.put(server_pb2.Server(server_uuid=server_uuid, replicas=replicas))


async def known(watching, *expected: tuple[str, object]) -> None:
    """Wait until the gateway has heard these from the other members: it follows them all the time, and hears of a change a moment later."""
    missing = set(expected)
    async with watching("bob") as following:
        while missing:
            missing.discard(told(await following()))


async def test_a_watch_sends_the_present_state_then_synced_then_changes(mesh, watching) -> None:
    put(mesh, "a", 1)
    mesh.download.add("m1")
    mesh.download.progress("m2", 10)
    await known(watching, ("server", ("a", 1)), ("model", "m1"), ("download", ("m2", 10)))
    async with watching() as following:
        start = [told(await following()) for _ in range(3)]
        assert sorted(start) == [("download", ("m2", 10)), ("model", "m1"), ("server", ("a", 1))]
        assert told(await following()) == ("synced", True)
        put(mesh, "a", 2)
        assert told(await following()) == ("server", ("a", 2))
        mesh.download.progress("m2", 20)
        assert told(await following()) == ("download", ("m2", 20))
        mesh.download.add("m2")
        assert told(await following()) == ("model", "m2")


async def test_removals_reach_the_watch(mesh, watching, as_caller) -> None:
    put(mesh, "a", 1)
    mesh.download.add("m1")
    mesh.download.progress("m1", 10)
    mesh.download.progress("m2", 10)
    await known(watching, ("server", ("a", 1)), ("model", "m1"), ("download", ("m1", 10)), ("download", ("m2", 10)))
    async with watching() as following:
        while told(await following())[0] != "synced":
            pass
        await mesh.gateway.Stop(gateway_pb2.StopRequest(server_uuid="a"), metadata=as_caller("ada", "manage"))
        stopped = await following()
        assert told(stopped) == ("stopped_server", ("a", 1))
        assert stopped.stopped_server.state == server_pb2.SERVER_STATE_STOPPED
        await mesh.gateway.DeleteModel(
            gateway_pb2.DeleteModelRequest(model_uuid="m1"), metadata=as_caller("ada", "manage")
        )
        # The record of a download goes with its model, or by itself.
        assert told(await following()) == ("removed_download_uuid", "m1")
        assert told(await following()) == ("removed_model_uuid", "m1")
        mesh.download.remove_download("m2")
        assert told(await following()) == ("removed_download_uuid", "m2")


async def test_a_selector_shows_only_selected_resources(mesh, watching) -> None:
    put(mesh, "a", 1)
    put(mesh, "b", 1)
    mesh.download.add("m1")
    await known(watching, ("server", ("a", 1)), ("server", ("b", 1)), ("model", "m1"))
    async with watching(kinds=[gateway_pb2.WATCH_KIND_SERVERS], server_uuids=["b"]) as following:
        assert told(await following()) == ("server", ("b", 1))
        assert told(await following()) == ("synced", True)
        put(mesh, "a", 2)
        mesh.download.add("m2")
        put(mesh, "b", 2)
        assert told(await following()) == ("server", ("b", 2))


async def test_a_resume_token_continues_with_the_missed_changes(mesh, watching) -> None:
    put(mesh, "a", 1)
    put(mesh, "b", 1)
    await known(watching, ("server", ("a", 1)), ("server", ("b", 1)))
    async with watching() as following:
        messages = [await following() for _ in range(3)]
    token = messages[-1].resume_token
    put(mesh, "b", 2)
    put(mesh, "b", 3)
    del mesh.controller.servers["a"]
    mesh.controller.changes.tell(
        controller_pb2.WatchServersResponse(removed=server_pb2.Server(server_uuid="a", replicas=1))
    )
    async with watching(server_uuids=["probe"]) as probe, watching(resume_token=token) as following:
        put(mesh, "probe", 1)
        while told(await probe())[0] != "server":
            pass
        seen = [told(await following())]
        while seen[-1][1] != ("probe", 1):
            seen.append(told(await following()))
        changes = [event for event in seen if event != ("synced", True)]
        assert changes[-3:] == [("server", ("b", 3)), ("stopped_server", ("a", 1)), ("server", ("probe", 1))]


@pytest.mark.parametrize("token", ["nonsense", "otherlife0000.3", ".1", "٣", "a.99999999999999999999999"])
async def test_a_token_of_another_life_is_expired(mesh, watching, token) -> None:
    async with watching(resume_token=token) as following:
        with refused("RESUME_TOKEN_EXPIRED"):
            await following()


async def test_the_restart_of_a_member_shows_as_differences_only(mesh, watching, start_member, stop_member) -> None:
    for name in ("a", "b", "c"):
        put(mesh, name, 1)
    await known(watching, *(("server", (name, 1)) for name in ("a", "b", "c")))
    async with watching(kinds=[gateway_pb2.WATCH_KIND_SERVERS]) as following:
        while told(await following())[0] != "synced":
            pass
        await stop_member(mesh.members["controller"])
        del mesh.controller.servers["a"]
        mesh.controller.servers["b"].replicas = 7
        await start_member(mesh.settings, "controller", mesh.controller.register)
        assert told(await following()) == ("server", ("b", 7))
        stopped = await following()
        assert told(stopped) == ("stopped_server", ("a", 1))
        assert stopped.stopped_server.state == server_pb2.SERVER_STATE_STOPPED
        put(mesh, "d", 1)
        assert told(await following()) == ("server", ("d", 1))


async def test_all_watches_share_one_stream_from_each_member(mesh, watching) -> None:
    async with watching() as first, watching() as second, watching("bob") as third:
        for following in (first, second, third):
            assert told(await following()) == ("synced", True)
        assert (mesh.controller.changes.watchers, mesh.download.changes.watchers) == (1, 1)


async def test_a_subject_has_so_many_watches_and_gets_them_back(mesh, watching, as_caller) -> None:
    calls = [mesh.gateway.Watch(gateway_pb2.WatchRequest(), metadata=as_caller("ada", "manage")) for _ in range(16)]
    for call in calls:
        await anext(aiter(call))
    async with watching() as following:
        with refused("TOO_MANY_WATCHES") as refusal:
            await following()
    assert refusal.metadata == {"limit": "16"}
    async with watching("bob") as following:
        assert told(await following()) == ("synced", True)
    for call in calls:
        call.cancel()
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with watching() as following:
                    await following()
            except Exception:
                await asyncio.sleep(0.01)
            else:
                break


async def test_a_watch_without_its_member_says_so(one_settings, start_mesh, as_caller, monkeypatch) -> None:
    monkeypatch.setattr("services.gateway.watch.SYNC_PATIENCE", 0.2)
    mesh = await start_mesh(one_settings, without=("controller",), users=("ada",))
    downloads = gateway_pb2.WatchRequest(kinds=[gateway_pb2.WATCH_KIND_DOWNLOADS])
    stream = mesh.gateway.Watch(downloads, metadata=as_caller("ada", "manage"))
    assert (await anext(aiter(stream))).synced
    with refused("COMPONENT_UNAVAILABLE") as refusal:
        await anext(aiter(mesh.gateway.Watch(gateway_pb2.WatchRequest(), metadata=as_caller("ada", "manage"))))
    assert refusal.metadata == {"component": "controller"}


async def test_a_drain_ends_watches_at_once(one_settings, start_mesh, as_caller, stop_member) -> None:
    mesh = await start_mesh(one_settings.model_copy(update={"drain_seconds": 10 * PATIENCE}), users=("ada",))
    watch = aiter(mesh.gateway.Watch(gateway_pb2.WatchRequest(), metadata=as_caller("ada", "manage")))
    assert told(await anext(watch)) == ("synced", True)
    async with asyncio.timeout(PATIENCE):
        await stop_member(mesh.members["gateway"])
    with refused("COMPONENT_UNAVAILABLE") as refusal:
        await anext(watch)
    assert refusal.retry_after == 1
