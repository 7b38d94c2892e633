"""Reads the observed state of one server: from its runtime, its models and Envoy's acknowledgements.

Invariant: only `refresh` and `is_idle` wait for answers of engines; `state` reads cached values and has no side effects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from controller.declared import DeclaredServer
from controller.model_files import Availability, ModelFile
from controller.observed import Desired, ObservedState
from controller.runtimes import Engine, EnginePhase, Place
from controller.server_history import ServerHistory
from llamesh.runtime_parameters import needed_models


class Observer:
    """The observing part of a reconciliation."""

    def __init__(self, runtime: Place, clock: Callable[[], float]) -> None:
        self._runtime = runtime
        self._clock = clock

    async def refresh(self, desired: Desired, declared: DeclaredServer, history: ServerHistory) -> None:
        """Record engines that have ended since the last reconciliation, and poll whether draining engines are idle."""
        for instance in history.update(desired.spec_hash, self.engines(declared), self._clock()):
            self._runtime.forget(instance)
        for engine in self.engines(declared):
            if engine.instance in history.draining and engine.phase is EnginePhase.READY:
                # An answer from before Envoy withdrew the engine may be older than its last request.
                withdrawn = history.publication.is_withdrawn(engine.instance)
                history.loads[engine.instance] = await self._runtime.load(engine.instance) if withdrawn else None

    def state(self, desired: Desired, declared: DeclaredServer, history: ServerHistory) -> ObservedState:
        """Return the observed state as of now."""
        seen = history.observe(
            desired.spec_hash,
            self.engines(declared),
            self._clock(),
            self.model(declared).availability is Availability.AVAILABLE,
            model_names(declared),
        )
        return replace(seen, obstacle=self._runtime.obstacle(declared.server_uuid)) if self._runtime.scales else seen

    def model(self, declared: DeclaredServer) -> ModelFile:
        """Return the file of the served model, or the first file that the server needs and that is not available."""
        served, *others = (self._runtime.model(model_uuid) for model_uuid in needed_models(declared.spec))
        return next((file for file in (served, *others) if file.availability is not Availability.AVAILABLE), served)

    async def is_idle(self, declared: DeclaredServer, history: ServerHistory) -> bool:
        """Poll every ready engine once more before the server is put to sleep. Return False if one has worked since the last poll."""
        for engine in self.engines(declared):
            if engine.phase is EnginePhase.READY:
                before = history.last_activity
                history.note_load(engine.instance, await self._runtime.load(engine.instance), self._clock())
                if history.last_activity != before:
                    return False
        return True

    def engines(self, declared: DeclaredServer) -> list[Engine]:
        """Return the server's engines as of now."""
        return list(self._runtime.engines(declared.server_uuid))


def model_names(declared: DeclaredServer) -> tuple[str, ...]:
    """Return the model names of the server in requests, in addition to its id."""
    return (declared.spec.model_name,) if declared.spec.model_name else ()
