"""Carries out the actions of a plan on the runtime and in the store of declared servers.

Invariant: every action is idempotent. An action that fails raises, and the work queue reconciles the server again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controller import launch
from controller.actions import Action, Admit, Drain, FallAsleep, Forget, Locate, Resume, Scale, Start, Stop
from controller.declared import DeclaredServer, RunState
from controller.declared_store import DeclaredStore
from controller.model_files import Availability
from controller.runtimes import LaunchSpec, Place
from controller.server_history import ServerHistory
from llamesh.kit.config import Settings
from llamesh.kit.logs import log
from llamesh.runtime_parameters import needed_models


class Actuator:
    """The acting half of a reconciliation."""

    def __init__(self, settings: Settings, store: DeclaredStore, runtime: Place, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._store = store
        self._runtime = runtime
        self._clock = clock

    async def carry_out(self, actions: Iterable[Action], declared: DeclaredServer, history: ServerHistory) -> None:
        """Carry out the actions in order."""
        for action in actions:
            await self._carry_out(action, declared, history)

    async def _carry_out(self, action: Action, declared: DeclaredServer, history: ServerHistory) -> None:
        if self._runtime.scales:
            match action:
                case Scale(replicas):
                    await self._runtime.scale(self._launch_spec(declared, 0), replicas, declared.engine_memory_bytes)
                case Admit(instance):
                    await self._runtime.admit(instance)
        else:
            match action:
                case Start(replica):
                    await self._runtime.start(self._launch_spec(declared, replica))
                case Stop(instance, grace):
                    self._runtime.stop(instance, grace)
        match action:
            case Drain(instance):
                history.draining[instance] = self._clock()
                history.loads.pop(instance, None)
            case Resume(instance):
                history.draining.pop(instance, None)
            case Locate():
                for model_uuid in needed_models(declared.spec):
                    if self._runtime.model(model_uuid).availability is not Availability.AVAILABLE:
                        self._runtime.locate(model_uuid)
            case FallAsleep():
                log.info("falls asleep", server=declared.server_uuid)
                self._store.decide_run_state(declared.server_uuid, RunState.ASLEEP_IDLE, only_from=RunState.AWAKE)
            case Forget():
                await self._store.forget(declared.server_uuid)

    def _launch_spec(self, declared: DeclaredServer, replica: int) -> LaunchSpec:
        return launch.launch_spec(declared.server_uuid, replica, declared.spec, self._settings, self._runtime.model)
