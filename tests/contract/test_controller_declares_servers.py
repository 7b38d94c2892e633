"""Servers are declared, changed, put to sleep and removed over the controller's contract, on SQLite and PostgreSQL. Engines are a fake."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.declared_servers import DeclaredServers
from controller.reconcile import Reconciler
from llamesh.kit.config import Settings
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import RuntimeParameters
from tests.contract.fake_runtime import Controller, refused, running
from tests.contract.patience import PATIENCE


@pytest.fixture
async def controller(
    settings: Settings, start_member: Any, connect: Any, until: Any, tmp_path: Path
) -> AsyncIterator[Controller]:
    async with running(settings, start_member, connect, until, tmp_path) as found:
        yield found


async def test_a_declared_server_starts_and_becomes_ready(controller: Controller) -> None:
    server = await controller.declare(parameters=RuntimeParameters(ctx_size=2048, warmup=False), replicas=2)
    assert server.state == server_pb2.SERVER_STATE_STARTING
    assert server.endpoint.endswith(f"/{server.server_uuid}/v1")
    assert (server.runtime_params, server.owner, server.replicas) == ("--ctx-size 2048 --no-warmup", "ada", 2)
    found = await controller.ready(server, 2)
    assert found.ready_replicas == 2
    assert found.observed_generation == found.generation == 1
    assert [condition.type for condition in found.conditions] == [
        "Ready",
        "Available",
        "Progressing",
        "Accepted",
        "ModelReady",
        "FitsMemory",
        "Routable",
    ]
    assert [spec.parameters for spec in controller.runtime.launched] == [{"ctx_size": 2048, "warmup": False}] * 2


async def test_a_request_id_is_a_users_and_not_a_names(controller) -> None:
    first = await controller.declare(request_id="r1", digest="d1", uid="usr_1")
    later = await controller.declare(request_id="r1", digest="d2", uid="usr_2")
    assert later.server_uuid != first.server_uuid
    assert (await controller.declare(request_id="r1", digest="d2", uid="usr_2")).server_uuid == later.server_uuid
    # Renamed or not: the uid is what counts.
    again = await controller.declare(request_id="r1", digest="d1", uid="usr_1", owner="ada2")
    assert again.server_uuid == first.server_uuid
    request = pb.FindRequestedServerRequest(owner="ada", owner_uid="usr_2", request_id="r1", request_digest="d2")
    assert (await controller.stub.FindRequestedServer(request)).server_uuid == later.server_uuid


async def test_a_repeated_request_id_gives_the_first_server_of_its_owner(controller: Controller) -> None:
    first = await controller.declare(request_id="r1")
    again = await controller.declare(request_id="r1", replicas=3)
    assert again.server_uuid == first.server_uuid
    assert again.replicas == 1
    other = await controller.declare(request_id="r1", owner="bob")
    assert other.server_uuid != first.server_uuid
    assert (await controller.declare()).server_uuid != (await controller.declare()).server_uuid


async def test_a_request_id_that_was_used_for_another_request_is_refused(controller: Controller) -> None:
    def find(owner: str, request_id: str, digest: str) -> Any:
        return controller.stub.FindRequestedServer(
            pb.FindRequestedServerRequest(owner=owner, request_id=request_id, request_digest=digest)
        )

    await refused(find("ada", "r1", "d1"), "SERVER_NOT_FOUND")
    first = await controller.declare(request_id="r1", digest="d1")
    assert (await find("ada", "r1", "d1")).server_uuid == first.server_uuid
    assert (await controller.declare(request_id="r1", digest="d1")).server_uuid == first.server_uuid
    await refused(controller.declare(request_id="r1", digest="d2"), "REQUEST_ID_REUSED")
    await refused(find("ada", "r1", "d2"), "REQUEST_ID_REUSED")
    await refused(find("bob", "r1", "d2"), "SERVER_NOT_FOUND")
    # What an earlier release declared has no digest: it is taken for the same.
    await controller.declare(request_id="old")
    assert (await find("ada", "old", "d1")).spec.model_name == "smol"


async def test_a_server_that_has_changed_since_it_was_read_is_not_removed(controller: Controller) -> None:
    server = await controller.declare()
    changed = await controller.update(server, replicas=2)
    stale = pb.RemoveServerRequest(server_uuid=server.server_uuid, etag=server.etag)
    await refused(controller.stub.RemoveServer(stale), "ETAG_MISMATCH")
    assert (await controller.get(server)).state != server_pb2.SERVER_STATE_STOPPING
    await controller.stub.RemoveServer(pb.RemoveServerRequest(server_uuid=server.server_uuid, etag=changed.etag))
    await refused(controller.get(server), "SERVER_NOT_FOUND")


async def test_twenty_equal_calls_at_once_declare_one_server(controller: Controller) -> None:
    servers = await asyncio.gather(*(controller.declare(request_id="same") for _ in range(20)))
    assert len({server.server_uuid for server in servers}) == 1


async def test_a_change_needs_the_etag_that_was_read(controller: Controller) -> None:
    server = await controller.ready(await controller.declare())
    changed = await controller.update(server, server.etag, replicas=2)
    assert (changed.replicas, changed.generation) == (2, 2)
    assert changed.etag != server.etag
    await refused(controller.update(server, server.etag, replicas=3), "ETAG_MISMATCH")
    same = await controller.update(server, replicas=2)
    assert same.etag == changed.etag


async def test_changed_parameters_replace_the_engine_without_a_gap(controller: Controller) -> None:
    server = await controller.ready(await controller.declare())
    await controller.update(server, parameters=RuntimeParameters(ctx_size=4096))
    await controller.until(lambda: len(controller.runtime.launched) == 2)
    during = await controller.get(server)
    assert during.ready_replicas == 1
    assert during.state == server_pb2.SERVER_STATE_READY
    controller.runtime.become_ready()
    await controller.until(lambda: [engine.instance for engine in controller.runtime.list] == ["e2"])
    assert (await controller.until_state(server, server_pb2.SERVER_STATE_READY)).ready_replicas == 1


async def test_sleep_ends_the_engines_and_wake_starts_them(controller: Controller) -> None:
    server = await controller.ready(await controller.declare())
    request = pb.SleepDeclaredServerRequest(server_uuid=server.server_uuid)
    for _ in range(2):
        await controller.stub.SleepDeclaredServer(request)
        asleep = await controller.until_state(server, server_pb2.SERVER_STATE_SLEEPING)
    assert asleep.conditions[0].reason == "Asleep"
    assert asleep.generation == server.generation
    await controller.stub.WakeDeclaredServer(pb.WakeDeclaredServerRequest(server_uuid=server.server_uuid))
    await controller.ready(server)


async def test_a_removed_server_is_gone_and_said_to_be_stopped(controller: Controller) -> None:
    server = await controller.ready(await controller.declare())
    request = pb.RemoveServerRequest(server_uuid=server.server_uuid)
    last = await controller.stub.RemoveServer(request, timeout=PATIENCE)
    assert last.state == server_pb2.SERVER_STATE_STOPPED
    assert controller.runtime.list == []
    await refused(controller.get(server), "SERVER_NOT_FOUND")
    await refused(controller.stub.RemoveServer(request), "SERVER_NOT_FOUND")
    await refused(controller.update(server, replicas=2), "SERVER_NOT_FOUND")
    await refused(
        controller.stub.WakeDeclaredServer(pb.WakeDeclaredServerRequest(server_uuid=server.server_uuid)),
        "SERVER_NOT_FOUND",
    )


async def test_removal_of_a_server_that_no_look_has_seen_waits_without_spinning(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds = 0
    find = DeclaredServers.find

    async def counted(store: DeclaredServers, server_uuid: str) -> Any:
        nonlocal finds
        finds += 1
        return await find(store, server_uuid)

    async def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(DeclaredServers, "find", counted)
    with monkeypatch.context() as broken:
        broken.setattr(Reconciler, "_reconcile_declared", fail)
        server = await controller.declare()
        request = pb.RemoveServerRequest(server_uuid=server.server_uuid)
        finds = 0
        broken.setattr("controller.servicer._MARGIN_SECONDS", PATIENCE)
        assert (
            await controller.stub.RemoveServer(request, timeout=PATIENCE + 1)
        ).state != server_pb2.SERVER_STATE_STOPPED
        # Four a second and those of the failing looks; a loop without a pause does thousands.
        assert finds < 50
    # Nobody ever saw it on the board, so nothing but looking again tells that it is gone.
    assert (await controller.stub.RemoveServer(request, timeout=PATIENCE)).state == server_pb2.SERVER_STATE_STOPPED


async def test_an_engine_is_given_the_file_of_its_draft_model(controller: Controller) -> None:
    await controller.ready(await controller.declare(parameters=RuntimeParameters(model_draft="m2")))
    spec = controller.runtime.launched[-1]
    assert spec.files == {"model_draft": spec.model_path}
    assert spec.parameters["model_draft"] == "m2"


async def test_no_engine_is_started_while_the_draft_model_is_not_there(controller: Controller) -> None:
    server = await controller.declare(parameters=RuntimeParameters(model_draft="missing"))
    async with asyncio.timeout(PATIENCE):
        while not any("missing" in item.message for item in (await controller.get(server)).conditions):
            await asyncio.sleep(0.005)
    assert controller.runtime.launched == []
