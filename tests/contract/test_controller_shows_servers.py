"""Reading, listing and watching servers over the controller's contract, on SQLite and PostgreSQL. Engines are a fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from controller import servicer as controller_servicer
from llamesh.kit.config import Settings
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import RuntimeParameters, ServerSpec
from tests.contract.fake_runtime import Controller, refused, running
from tests.contract.patience import PATIENCE


@pytest.fixture
async def controller(
    settings: Settings, start_member: Any, connect: Any, until: Any, tmp_path: Path
) -> AsyncIterator[Controller]:
    async with running(settings, start_member, connect, until, tmp_path) as found:
        yield found


async def test_engines_that_fail_are_reported_with_their_reason(controller: Controller) -> None:
    server = await controller.declare()
    for _ in range(3):
        await controller.until(lambda: controller.runtime.alive)
        controller.runtime.crash("BadModel")
    found = await controller.until_state(server, server_pb2.SERVER_STATE_FAILING)
    ready = found.conditions[0]
    assert (ready.status, ready.reason) == (server_pb2.CONDITION_STATUS_FALSE, "BadModel")
    assert "it broke" in ready.message
    assert found.replica_statuses[0].state == server_pb2.REPLICA_STATE_BACKOFF
    assert found.replica_statuses[0].restarts == 3


async def test_without_an_envoy_a_server_is_not_ready_and_says_why(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.publication.ACK_SECONDS", 0.05)
    controller.envoy.there.clear()
    server = await controller.declare()
    await controller.until(lambda: controller.runtime.alive)
    controller.runtime.become_ready()
    async with asyncio.timeout(PATIENCE):
        while (found := await controller.get(server)).conditions[0].reason != "EnvoyNotConnected":
            await asyncio.sleep(0.01)
    assert found.conditions[0].status == server_pb2.CONDITION_STATUS_UNKNOWN
    assert (found.state, found.ready_replicas) == (server_pb2.SERVER_STATE_STARTING, 0)
    controller.envoy.there.set()
    assert (await controller.until_state(server, server_pb2.SERVER_STATE_READY)).ready_replicas == 1


async def test_a_server_is_among_those_of_every_model_that_it_needs(controller: Controller) -> None:
    server = await controller.declare(parameters=RuntimeParameters(model_draft="missing"))
    for model_uuid, listed in ((server.model_uuid, 1), ("missing", 1), ("other", 0)):
        answer = await controller.stub.ListDeclaredServers(pb.ListDeclaredServersRequest(model_uuid=model_uuid))
        assert len(answer.servers) == listed, model_uuid


async def test_pages_hold_every_server_once_in_order(controller: Controller) -> None:
    declared = [(await controller.declare(model=f"m{number % 2}")).server_uuid for number in range(7)]
    seen: list[str] = []
    token = ""
    while True:
        page = await controller.stub.ListDeclaredServers(pb.ListDeclaredServersRequest(page_size=3, page_token=token))
        assert len(page.servers) <= 3
        seen += [server.server_uuid for server in page.servers]
        token = page.next_page_token
        if not token:
            break
    assert seen == declared
    some = await controller.stub.ListDeclaredServers(pb.ListDeclaredServersRequest(model_uuid="m1"))
    assert [server.server_uuid for server in some.servers] == declared[1::2]
    await refused(
        controller.stub.ListDeclaredServers(pb.ListDeclaredServersRequest(page_token="x")), "INVALID_PAGE_TOKEN"
    )


async def test_a_watcher_sees_the_present_state_and_then_changes(controller: Controller) -> None:
    server = await controller.ready(await controller.declare())
    watch = controller.stub.WatchServers(pb.WatchServersRequest())
    first = await watch.read()
    assert first.server.server_uuid == server.server_uuid
    assert (await watch.read()).synced
    await controller.stub.RemoveServer(pb.RemoveServerRequest(server_uuid=server.server_uuid), timeout=PATIENCE)
    last: pb.WatchServersResponse | None = None
    async with asyncio.timeout(PATIENCE):
        while last is None or last.WhichOneof("change") != "removed":
            last = await watch.read()
    assert last.removed.state == server_pb2.SERVER_STATE_STOPPED
    watch.cancel()


async def test_capacity_counts_every_engine_that_may_run_and_no_sleeping_one(controller: Controller) -> None:
    awake = await controller.ready(await controller.declare(), 1)
    starting = await controller.declare("other", replicas=3)
    asleep = await controller.declare("asleep", replicas=100)
    await controller.stub.SleepDeclaredServer(pb.SleepDeclaredServerRequest(server_uuid=asleep.server_uuid))
    await controller.until_state(asleep, server_pb2.SERVER_STATE_SLEEPING)
    (node,) = (await controller.stub.GetCapacity(pb.GetCapacityRequest())).nodes
    assert node.promised_bytes == 4000
    assert 0 < node.available_bytes <= node.total_bytes
    assert 0 <= node.free_bytes <= node.available_bytes
    for left_out, promised in ((awake, 3000), (starting, 1000), (asleep, 4000)):
        request = pb.GetCapacityRequest(without_server_uuid=left_out.server_uuid)
        (node,) = (await controller.stub.GetCapacity(request)).nodes
        assert node.promised_bytes == promised


async def test_weights_that_engines_share_are_promised_once(controller: Controller) -> None:
    for name in ("one", "two"):
        spec = ServerSpec(model_uuid="m1", model_name=name, replicas=2)
        request = pb.DeclareServerRequest(spec=spec, engine_memory_bytes=1000, shared_weights_bytes=700)
        await controller.stub.DeclareServer(request)
    (node,) = (await controller.stub.GetCapacity(pb.GetCapacityRequest())).nodes
    assert node.promised_bytes == 700 + 4 * 300
    assert [(each.model_uuid, each.shared_bytes) for each in node.shared_weights] == [("m1", 700)]


async def test_a_log_is_read_and_followed(controller: Controller) -> None:
    server = await controller.declare()
    request = pb.ReadEngineLogRequest(server_uuid=server.server_uuid, tail_lines=2)
    assert [list(part.lines) async for part in controller.stub.ReadEngineLog(request)] == [["second", "third"]]
    follow = controller.stub.ReadEngineLog(
        pb.ReadEngineLogRequest(server_uuid=server.server_uuid, tail_lines=1, follow=True)
    )
    assert [list((await follow.read()).lines) for _ in range(3)] == [["third"], ["more"], ["more"]]
    follow.cancel()
    missing = controller.stub.ReadEngineLog(pb.ReadEngineLogRequest(server_uuid="none"))
    await refused(missing.read(), "SERVER_NOT_FOUND")


async def test_the_mesh_status_counts(controller: Controller) -> None:
    await controller.ready(await controller.declare(idle_sleep=Duration(seconds=60)))
    status = await controller.stub.GetMeshStatus(pb.GetMeshStatusRequest())
    assert (status.declared_servers, status.running_engines, status.connected_envoys) == (1, 1, 0)


def routable(server: Any) -> Any:
    return next(condition for condition in server.conditions if condition.type == "Routable")


async def test_the_answer_comes_once_envoy_routes_the_name(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_servicer, "ROUTABLE_SECONDS", PATIENCE)
    monkeypatch.setattr("controller.publication.ACK_SECONDS", PATIENCE)
    controller.envoy.stats.connected = 1
    controller.envoy.there.clear()
    declaring = asyncio.ensure_future(controller.declare())
    await controller.until(lambda: bool(controller.runtime.launched))
    assert not declaring.done()
    controller.envoy.there.set()
    server = await declaring
    assert routable(server).status == server_pb2.CONDITION_STATUS_TRUE

    controller.envoy.there.clear()
    renaming = asyncio.ensure_future(controller.update(server, model_name="other"))
    await controller.until(lambda: "m:other" in controller.envoy.intent.clusters())
    assert not renaming.done()
    controller.envoy.there.set()
    assert routable(await renaming).status == server_pb2.CONDITION_STATUS_TRUE


async def test_an_envoy_that_does_not_acknowledge_is_not_waited_for_longer_than_stated(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_servicer, "ROUTABLE_SECONDS", 0.05)
    controller.envoy.stats.connected = 1
    controller.envoy.there.clear()
    server = await controller.declare()
    assert routable(server).status == server_pb2.CONDITION_STATUS_FALSE
    assert routable(server).reason == "NotAcknowledged"


async def test_without_an_envoy_nothing_is_waited_for(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_servicer, "ROUTABLE_SECONDS", 3600.0)
    controller.envoy.there.clear()
    server = await controller.declare()
    assert routable(server).status != server_pb2.CONDITION_STATUS_TRUE
    await controller.stub.WakeDeclaredServer(pb.WakeDeclaredServerRequest(server_uuid=server.server_uuid))
    await controller.update(server, model_name="other")
