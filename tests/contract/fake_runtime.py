"""A controller on a real channel. Its runtime and its Envoy are labelled fakes; engines are ready when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest

from controller.declared_servers import DeclaredServers
from controller.model_files import ModelFile as LocatedFile
from controller.model_files import ModelFiles
from controller.reconcile import Reconciler
from controller.runtimes import Engine, EngineExit, EngineLoad, EnginePhase, LaunchSpec
from controller.runtimes.start_limit import default_limit
from controller.servicer import ControllerServicer
from controller.status_cache import StatusCache
from controller.xds.serving import ControlPlane
from llamesh.cores import usable_cores
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.errors import DETAILS_KEY, MeshError, Reason
from llamesh.kit.machine_memory import MachineMemory, machine_memory
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.controller_pb2_grpc import ControllerServiceStub, add_ControllerServiceServicer_to_server
from llamesh.v1.download_pb2 import ListModelObjectsResponse, LocateModelResponse
from llamesh.v1.download_pb2_grpc import CatalogueServiceServicer, add_CatalogueServiceServicer_to_server
from llamesh.v1.model_pb2 import MODEL_FILE_ROLE_WEIGHTS, Model, ModelFile
from llamesh.v1.server_pb2 import ServerChanges, ServerSpec
from tests.contract.patience import PATIENCE, available

Until = Any


class FakeRuntime:
    """FAKE: engines that are only entries of a list. They start at once and become ready when the test says so."""

    scales: Literal[False] = False
    decides = True

    def __init__(self, models: ModelFiles) -> None:
        self._models = models
        self.list: list[Engine] = []
        self.launched: list[LaunchSpec] = []
        self.lines = ["first", "second", "third"]
        self._changed: Callable[[str], None] = lambda _: None

    async def open(self, on_change: Callable[[str], None], on_model_change: Callable[[str], None]) -> None:
        self._changed = on_change
        self._models.open(on_model_change)

    async def close(self) -> None: ...

    async def stop_all(self, grace: float) -> None: ...

    def memory(self) -> MachineMemory:
        return machine_memory()

    def start_limit(self) -> int:
        return default_limit(usable_cores())

    def model(self, model_uuid: str) -> LocatedFile:
        return self._models.get(model_uuid)

    def locate(self, model_uuid: str) -> None:
        self._models.locate(model_uuid)

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

    def end_server(self, server_uuid: str, grace: float) -> None:
        for engine in self.engines(server_uuid):
            (self.forget if engine.phase is EnginePhase.ENDED else partial(self.stop, grace=grace))(engine.instance)

    def forget(self, instance: str) -> None:
        self.list = [engine for engine in self.list if engine.instance != instance]

    async def load(self, instance: str) -> EngineLoad | None:
        return EngineLoad(False, 0)

    async def metrics(self, instance: str) -> bytes | None:
        return None

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
        return LocateModelResponse(path=str(self._file), file_paths=[str(self._file)])

    async def ListModelObjects(self, request: Any, context: Any) -> ListModelObjectsResponse:
        file = ModelFile(role=MODEL_FILE_ROLE_WEIGHTS, size_bytes=5, sha256="0" * 64)
        model = Model(model_uuid=request.model_uuid, files=[file])
        return ListModelObjectsResponse(model=model, object_keys=[f"models/{'0' * 64}-1.gguf"])


class Controller:
    """A controller on a real socket, and what stands in for the world around it."""

    def __init__(self, stub: Any, runtime: FakeRuntime, envoy: FakeEnvoy, reconciler: Reconciler, until: Until) -> None:
        self.stub = stub
        self.reconciler = reconciler
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
        async with asyncio.timeout(PATIENCE):
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


@contextlib.asynccontextmanager
async def running(
    settings: Settings, start_member: Any, connect: Any, until: Until, tmp_path: Path
) -> AsyncIterator[Controller]:
    """A controller on a real socket for a `with` block."""
    database = open_database(settings, "controller")
    models = ModelFiles(connect(settings, "download"))
    store, statuses, runtime, control = DeclaredServers(database), StatusCache(), FakeRuntime(models), FakeEnvoy()
    reconciler = Reconciler(settings, store, runtime, control, statuses)
    async with contextlib.AsyncExitStack() as stack:
        for part in (database, models):
            stack.push_async_callback(part.close)
        await available(lambda: database.migrate("controller"))
        await available(store.refresh)
        model = tmp_path / "model.gguf"
        model.touch()
        await start_member(
            settings, "download", lambda member: add_CatalogueServiceServicer_to_server(Catalogue(model), member.server)
        )
        await reconciler.open()
        stack.push_async_callback(reconciler.close)

        def register(member: Any) -> None:
            servicer = ControllerServicer(settings, store, reconciler, statuses, runtime, control)
            add_ControllerServiceServicer_to_server(servicer, member.server)
            member.announce("llamesh.v1.ControllerService")

        await start_member(settings, "controller", register)
        yield Controller(ControllerServiceStub(connect(settings, "controller")), runtime, control, reconciler, until)


def reason_of(error: grpc.aio.AioRpcError) -> bytes:
    return b"".join(value for key, value in error.trailing_metadata() if key == DETAILS_KEY)


async def refused(call: Any, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason.encode() in reason_of(caught.value)
