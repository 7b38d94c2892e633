"""A draining engine counts as idle only by what it said after Envoy had stopped to send it requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from controller.declared import Declaration, RunState
from controller.declared_servers import DeclaredServers
from controller.model_files import ModelFiles
from controller.reconcile import Reconciler
from controller.runtimes import EngineLoad
from controller.status_cache import StatusCache
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.v1.server_pb2 import ServerSpec
from tests.contract.fake_runtime import FakeEnvoy, FakeRuntime
from tests.contract.patience import PATIENCE


class _BusyAtTheLastMoment(FakeRuntime):
    """FAKE: engines that say they are idle while one more request and Envoy's acknowledgement are on their way."""

    def __init__(self, envoy: FakeEnvoy, models: ModelFiles) -> None:
        super().__init__(models)
        self._envoy = envoy
        self.busy = False
        self.stopped_while_busy = False
        self.asked_after = 0

    async def load(self, instance: str) -> EngineLoad | None:
        said = EngineLoad(self.busy, 0)
        if not self._envoy.there.is_set():
            self.busy = True
            self._envoy.there.set()
            await asyncio.sleep(0.05)
        self.asked_after += self.busy
        return said

    def stop(self, instance: str, grace: float) -> None:
        self.stopped_while_busy = self.stopped_while_busy or self.busy
        super().stop(instance, grace)


async def test_an_answer_from_before_the_withdrawal_ends_no_engine(
    one_settings: Settings, connect: Any, tmp_path: Path
) -> None:
    database, envoy, statuses = open_database(one_settings, "controller"), FakeEnvoy(), StatusCache()
    await database.migrate("controller")
    models = ModelFiles(connect(one_settings, "download"))
    store, runtime = DeclaredServers(database), _BusyAtTheLastMoment(envoy, models)
    reconciler = Reconciler(one_settings, store, runtime, envoy, statuses)
    server = await store.declare(Declaration(ServerSpec(model_uuid="m1", model_name="a"), "ada"))
    await runtime.open(lambda _: None, lambda _: None)
    await runtime.start(_launch_spec(server.server_uuid, server.spec, one_settings))
    runtime.become_ready()
    await reconciler.open()
    try:
        async with asyncio.timeout(PATIENCE):
            while not (found := statuses.get(server.server_uuid)) or not found.ready_replicas:
                await asyncio.sleep(0.01)
            envoy.there.clear()
            store.decide_run_state(server.server_uuid, RunState.ASLEEP_IDLE)
            reconciler.changed(server.server_uuid)
            await asyncio.sleep(0.2)
            reconciler.changed(server.server_uuid)
            await asyncio.sleep(0.2)
            # Unless an engine was asked before: the request and the acknowledgement arrive now.
            runtime.busy = True
            envoy.there.set()
            while not runtime.asked_after:
                await asyncio.sleep(0.01)
            assert not runtime.stopped_while_busy
            runtime.busy = False
            while runtime.alive:
                await asyncio.sleep(0.01)
    finally:
        await reconciler.close()
        await models.close()
        await database.close()


def _launch_spec(server_uuid: str, spec: ServerSpec, settings: Settings) -> Any:
    from controller import launch
    from controller.model_files import Availability, ModelFile

    return launch.launch_spec(server_uuid, 0, spec, settings, lambda _: ModelFile(Availability.AVAILABLE))
