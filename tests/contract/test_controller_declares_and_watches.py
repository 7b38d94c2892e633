"""The controller's contract over a real channel, on SQLite and PostgreSQL. Engines are a labelled fake: ready when the test says so."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from controller import servicer as controller_servicer
from controller.declared import DeclaredServers
from controller.model_files import ModelFiles
from controller.reconcile import Reconciler
from controller.runtimes import Engine, EngineExit, EngineLoad, EnginePhase, LaunchSpec
from controller.servicer import ControllerServicer
from controller.status_cache import StatusCache
from controller.xds.serving import ControlPlane
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.errors import DETAILS_KEY, MeshError, Reason
from llamesh.kit.pages import open_pages
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.controller_pb2_grpc import ControllerServiceStub, add_ControllerServiceServicer_to_server
from llamesh.v1.download_pb2 import LocateModelResponse
from llamesh.v1.download_pb2_grpc import CatalogueServiceServicer, add_CatalogueServiceServicer_to_server
from llamesh.v1.server_pb2 import RuntimeParameters, ServerChanges, ServerSpec

Until = Any


class FakeRuntime:
    """FAKE: engines that are only entries of a list. They start at once and become ready when the test says so."""

    def __init__(self) -> None:
        self.list: list[Engine] = []
        self.launched: list[LaunchSpec] = []
        self.lines = ["first", "second", "third"]
        self._changed: Callable[[str], None] = lambda _: None

    async def open(self, on_change: Callable[[str], None]) -> None:
        self._changed = on_change

    async def close(self) -> None: ...

    def servers(self) -> Collection[str]:
        return {engine.server_uuid for engine in self.list}

    def engines(self, server_uuid: str) -> Sequence[Engine]:
        return [engine for engine in self.list if engine.server_uuid == server_uuid]

    async def start(self, spec: LaunchSpec) -> None:
        self.launched.append(spec)
        name = f"e{len(self.launched)}"
        self.list.append(
            Engine(
                name,
                spec.server_uuid,
                spec.replica,
                spec.spec_hash,
                EnginePhase.STARTING,
                f"/fake/{name}.sock",
                name,
                datetime.now(UTC),
            )
        )

    def stop(self, instance: str, grace: float) -> None:
        self._replace(instance, phase=EnginePhase.ENDED, exit=EngineExit("EngineExited", "", requested=True))

    def forget(self, instance: str) -> None:
        self.list = [engine for engine in self.list if engine.instance != instance]

    async def load(self, instance: str) -> EngineLoad | None:
        return EngineLoad(False, 0)

    async def read_log(
        self, server_uuid: str, replica: int, tail: int, *, follow: bool
    ) -> AsyncIterator[Sequence[str]]:
        yield self.lines[-tail:]
        while follow:
            await asyncio.sleep(0.01)
            yield ["more"]

    def drop_logs(self, server_uuid: str) -> None: ...

    @property
    def alive(self) -> list[Engine]:
        """The engines that have not ended."""
        return [engine for engine in self.list if engine.phase is not EnginePhase.ENDED]

    def become_ready(self) -> None:
        """Every engine that starts answers now."""
        for engine in self.list:
            if engine.phase is EnginePhase.STARTING:
                self._replace(engine.instance, phase=EnginePhase.READY, ready_since=0.0)

    def crash(self, reason: str) -> None:
        """Every engine ends by itself."""
        for engine in self.alive:
            self._replace(
                engine.instance, phase=EnginePhase.ENDED, exit=EngineExit(reason, "it broke", requested=False)
            )

    def _replace(self, instance: str, **changes: Any) -> None:
        self.list = [replace(engine, **changes) if engine.instance == instance else engine for engine in self.list]
        self._changed(next(engine.server_uuid for engine in self.list if engine.instance == instance))


class FakeEnvoy(ControlPlane):
    """FAKE: an Envoy that has acknowledged whatever it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.there = asyncio.Event()
        self.there.set()

    async def acknowledged(self, server_uuid: str, timeout: float) -> bool:
        try:
            await asyncio.wait_for(self.there.wait(), timeout)
        except TimeoutError:
            return False
        return self.intent.resources_of(server_uuid) is not None


class Catalogue(CatalogueServiceServicer):
    """Every model is this file, but for one that is missing."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def LocateModel(self, request: Any, context: Any) -> LocateModelResponse:
        if request.model_uuid == "missing":
            raise MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, "no model has the id missing", {})
        return LocateModelResponse(path=str(self._file))


class Controller:
    """A controller on a real socket, and what stands in for the world around it."""

    def __init__(self, stub: Any, runtime: FakeRuntime, envoy: FakeEnvoy, until: Until) -> None:
        self.stub = stub
        self.envoy = envoy
        self.runtime = runtime
        self.until = until

    async def declare(
        self,
        name: str = "smol",
        *,
        request_id: str = "",
        digest: str = "",
        owner: str = "ada",
        uid: str = "",
        **spec: Any,
    ) -> Any:
        wanted = ServerSpec(model_uuid=spec.pop("model", "m1"), model_name=name, **spec)
        return await self.stub.DeclareServer(
            pb.DeclareServerRequest(
                spec=wanted,
                request_id=request_id,
                request_digest=digest,
                owner=owner,
                owner_uid=uid,
                engine_memory_bytes=1000,
            )
        )

    async def get(self, server: Any) -> Any:
        return await self.stub.GetDeclaredServer(pb.GetDeclaredServerRequest(server_uuid=server.server_uuid))

    async def until_state(self, server: Any, state: int) -> Any:
        async with asyncio.timeout(10):
            while (found := await self.get(server)).state != state:
                await asyncio.sleep(0.005)
        return found

    async def ready(self, server: Any, engines: int = 1) -> Any:
        """Wait for the engines to be started, and let them answer."""
        await self.until(lambda: len(self.runtime.engines(server.server_uuid)) == engines)
        self.runtime.become_ready()
        return await self.until_state(server, server_pb2.SERVER_STATE_READY)

    async def update(self, server: Any, etag: str = "", **changes: Any) -> Any:
        return await self.stub.UpdateDeclaredServer(
            pb.UpdateDeclaredServerRequest(server_uuid=server.server_uuid, changes=ServerChanges(**changes), etag=etag)
        )


@pytest.fixture
async def controller(
    settings: Settings, start_member: Any, connect: Any, until: Until, tmp_path: Path
) -> AsyncIterator[Controller]:
    database = open_database(settings, "controller")
    await database.migrate("controller")
    store, statuses, runtime, control = DeclaredServers(database), StatusCache(), FakeRuntime(), FakeEnvoy()
    reconciler = Reconciler(settings, store, runtime, control, statuses)
    model = tmp_path / "model.gguf"
    model.touch()
    await start_member(
        settings, "download", lambda member: add_CatalogueServiceServicer_to_server(Catalogue(model), member.server)
    )
    models = ModelFiles(connect(settings, "download"), reconciler.model_changed)
    await reconciler.open(models)

    def register(member: Any) -> None:
        servicer = ControllerServicer(
            store, reconciler, statuses, runtime, control, settings.memory_reserve_bytes, open_pages(settings)
        )
        add_ControllerServiceServicer_to_server(servicer, member.server)
        member.announce("llamesh.v1.ControllerService")

    await start_member(settings, "controller", register)
    yield Controller(ControllerServiceStub(connect(settings, "controller")), runtime, control, until)
    await reconciler.close()
    await models.close()
    await database.close()


def reason_of(error: grpc.aio.AioRpcError) -> bytes:
    return b"".join(value for key, value in error.trailing_metadata() if key == DETAILS_KEY)


async def refused(call: Any, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason.encode() in reason_of(caught.value)


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
        "Progressing",
        "ModelAvailable",
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
    last = await controller.stub.RemoveServer(request, timeout=10)
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
        broken.setattr(Reconciler, "_reconcile_server", fail)
        server = await controller.declare()
        request = pb.RemoveServerRequest(server_uuid=server.server_uuid)
        finds = 0
        assert (await controller.stub.RemoveServer(request, timeout=2)).state != server_pb2.SERVER_STATE_STOPPED
        # Four a second and those of the failing looks; a loop without a pause does thousands.
        assert finds < 50
    # Nobody ever saw it on the board, so nothing but looking again tells that it is gone.
    assert (await controller.stub.RemoveServer(request, timeout=60)).state == server_pb2.SERVER_STATE_STOPPED


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
    async with asyncio.timeout(10):
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


async def test_an_engine_is_given_the_file_of_its_draft_model(controller: Controller) -> None:
    await controller.ready(await controller.declare(parameters=RuntimeParameters(model_draft="m2")))
    spec = controller.runtime.launched[-1]
    assert spec.files == {"model_draft": spec.model_path}
    assert spec.parameters["model_draft"] == "m2"


async def test_no_engine_is_started_while_the_draft_model_is_not_there(controller: Controller) -> None:
    server = await controller.declare(parameters=RuntimeParameters(model_draft="missing"))
    async with asyncio.timeout(10):
        while not any("missing" in item.message for item in (await controller.get(server)).conditions):
            await asyncio.sleep(0.005)
    assert controller.runtime.launched == []


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


async def test_a_watcher_sees_what_is_there_then_what_changes(controller: Controller) -> None:
    server = await controller.ready(await controller.declare())
    watch = controller.stub.WatchServers(pb.WatchServersRequest())
    first = await watch.read()
    assert first.server.server_uuid == server.server_uuid
    assert (await watch.read()).synced
    await controller.stub.RemoveServer(pb.RemoveServerRequest(server_uuid=server.server_uuid), timeout=10)
    last: pb.WatchServersResponse | None = None
    async with asyncio.timeout(10):
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


async def test_the_answer_comes_once_envoy_routes_the_name(controller: Controller) -> None:
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
