"""Reports the result of a reconciliation: endpoints to Envoy, status to readers and watchers.

Invariant: `report` does not await, so no reader sees a server as ready after its engines were withdrawn from Envoy.
"""

from __future__ import annotations

from datetime import datetime

from controller import launch
from controller.actions import Decision
from controller.conditions import MemoryRequirement
from controller.declared import DeclaredServer
from controller.observed import Desired, ObservedState
from controller.observer import Observer, model_names
from controller.runtimes import Engine
from controller.server_history import ServerHistory, desired_version
from controller.starts import StartScheduler
from controller.status import build_status
from controller.status_cache import StatusCache
from controller.status_reading import stopped_status
from controller.xds.clusters import ServerEndpoints
from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.logs import log
from llamesh.kit.redaction import redactor
from llamesh.runtime_parameters import slot_context
from llamesh.v1.server_pb2 import Server


class Reporter:
    """The reporting part of a reconciliation."""

    def __init__(self, settings: Settings, observer: Observer, starts: StartScheduler, statuses: StatusCache) -> None:
        self._settings = settings
        self._redact = redactor(settings)
        self._observer = observer
        self._starts = starts
        self._statuses = statuses

    def report(
        self,
        declared: DeclaredServer,
        desired: Desired,
        decision: Decision,
        engines: list[Engine],
        history: ServerHistory,
    ) -> None:
        """Publish the endpoints of a decision, then the status that follows from them."""
        history.publication.publish(self._endpoints(declared, decision, engines), decision.endpoints)
        history.generation = declared.generation
        history.reconciled = desired_version(declared)
        self._statuses.put(self.status(declared, desired, history))

    def status(self, declared: DeclaredServer, desired: Desired, history: ServerHistory) -> Server:
        """Return the status of a server as of now, without paths of this machine."""
        return self._status(declared, desired, self._observer.state(desired, declared, history), history, utc_now())

    def removed(self, server_uuid: str) -> None:
        """Publish the removal of a server to its watchers."""
        last = self._statuses.get(server_uuid)
        if last is not None:
            log.info("removed", server=server_uuid)
            self._statuses.remove(stopped_status(last, utc_now()))

    def _endpoints(self, declared: DeclaredServer, decision: Decision, engines: list[Engine]) -> ServerEndpoints:
        addresses = {engine.instance: engine.address for engine in engines}
        return ServerEndpoints(
            server_uuid=declared.server_uuid,
            model_names=model_names(declared),
            ready=tuple(addresses[instance] for instance in decision.endpoints),
            max_connections=launch.connections(declared.spec, self._settings),
            ask=declared.spec.metered,
            context=slot_context(declared.spec.parameters, self._observer.model(declared).context_length),
            silence_seconds=launch.response_timeout(declared.spec),
            budget_seconds=launch.wake_budget(declared.spec),
        )

    def _status(
        self, declared: DeclaredServer, desired: Desired, state: ObservedState, history: ServerHistory, now: datetime
    ) -> Server:
        server = build_status(
            declared,
            desired,
            state,
            self._observer.model(declared),
            MemoryRequirement(*self._starts.memory_for(declared.footprint)),
            self._settings.endpoint(declared.server_uuid),
            self._statuses.get(declared.server_uuid),
            history.generation,
            now,
        )
        # llama.cpp names the file that it cannot load.
        for condition in server.conditions:
            condition.message = self._redact(condition.message)
        for replica in server.replica_statuses:
            replica.message = self._redact(replica.message)
        return server
