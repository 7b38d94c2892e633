"""The loop of the controller: for one server, read what is declared and what is, plan, act, tell Envoy, write the status.

Level-triggered: whatever happened, the same look is taken, so a missed event costs time at most (RESYNC_SECONDS), and a
look after a crash goes on where the last one was. One look at a time for each server.

Invariant: Envoy is told and the board is written in one go, without giving way in between: whoever reads the board never
sees a server as ready that Envoy has been told to avoid.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from controller import launch
from controller.capacity import RecentMemory
from controller.declared import DeclaredServer, DeclaredServers, RunState, not_found
from controller.demand import Demand
from controller.footprint import Claim, Footprint, of_one_engine
from controller.model_files import RETRY_SECONDS, Availability, ModelFile, ModelFiles, needed_models
from controller.plan import (
    Action,
    Decision,
    Desired,
    Drain,
    FallAsleep,
    Forget,
    Locate,
    ObservedState,
    Resume,
    Start,
    Stop,
    plan,
)
from controller.publication import Publication
from controller.runtimes import EngineLoad, EnginePhase, Runtime
from controller.server_history import ServerHistory, desired_version
from controller.starts import NotEnoughMemory, StartNow, StartScheduler, default_limit
from controller.status import MemoryRequirement, build_status, stopped_status
from controller.status_cache import StatusCache
from controller.work_queue import WorkQueue
from controller.xds.clusters import ServerEndpoints
from controller.xds.serving import ControlPlane
from llamesh.background import BackgroundTask
from llamesh.cores import usable_cores
from llamesh.kit.config import Settings
from llamesh.kit.logs import log, report_failure
from llamesh.kit.redaction import redactor
from llamesh.runtime_parameters import slot_context
from llamesh.v1.server_pb2 import Server

RESYNC_SECONDS = 10.0
"""How often every server is looked at without a cause."""
MEMORY_POLL_SECONDS = 1.0
"""How often a start that waits for memory is looked at: other programs free theirs without telling."""
TURN_POLL_SECONDS = 5.0
"""How often a start that waits for others is looked at without a cause, so that it is shown as it is."""


class Reconciler:
    """Keeps declared servers running. Everything belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: DeclaredServers,
        runtime: Runtime,
        control: ControlPlane,
        statuses: StatusCache,
        clock: Callable[[], float] = time.monotonic,
        demand: Demand | None = None,
    ) -> None:
        self._settings = settings
        self._hide = redactor(settings)
        self._store = store
        self._runtime = runtime
        self._control = control
        self._statuses = statuses
        self._clock = clock
        self._histories: dict[str, ServerHistory] = {}
        self._queue = WorkQueue(self._reconcile)
        self._tasks = [
            BackgroundTask(
                "look at every server", self._resync_once, report_failure, every=RESYNC_SECONDS, immediately=False
            ),
            BackgroundTask("write what was decided", store.write_decided, report_failure, longest=RESYNC_SECONDS / 2),
        ]
        self._models: ModelFiles | None = None
        self._memory_now = RecentMemory(clock)
        self._demand = demand or Demand()
        self._starts = StartScheduler(
            settings.concurrent_starts or default_limit(usable_cores()),
            settings.memory_reserve_bytes,
            self._memory_now.read,
            self._demand.waits_for,
            clock,
        )

    async def open(self, models: ModelFiles) -> None:
        """Adopt what runs, look at every server once, then go on by events. Afterwards the control plane knows all endpoints."""
        self._models = models
        await self._runtime.open(self._queue.add)
        for declared in await self._store.all():
            try:
                await self._reconcile_server(declared, self._history(declared.server_uuid))
            except Exception as failure:
                # One server must not keep all others from being served.
                report_failure(f"look at server {declared.server_uuid}", failure)
                self._statuses.put(self.view(declared))
                self._queue.add(declared.server_uuid)
        self._statuses.synced.set()
        self._queue.start()
        for server_uuid in self._runtime.servers():
            self._queue.add(server_uuid)
        for task in self._tasks:
            task.start()

    async def close(self) -> None:
        """Stop looking. Engines stay as they are."""
        await asyncio.gather(*(task.close() for task in self._tasks))
        await self._queue.close()
        await asyncio.gather(*(history.publication.close() for history in self._histories.values()))

    def changed(self, server_uuid: str) -> None:
        """Something about a server may have changed: look at it soon."""
        self._queue.add(server_uuid)

    def model_changed(self, model_uuid: str) -> None:
        """Something about a model may have changed: look at its servers soon."""
        for server in self._statuses.all():
            if model_uuid in needed_models(server.spec):
                self._queue.add(server.server_uuid)

    def touch(self, server_uuid: str) -> None:
        """A server has work: it is not to fall asleep now."""
        if history := self._histories.get(server_uuid):
            history.last_activity = self._clock()

    def note_load(self, server_uuid: str, instance: str, load: EngineLoad | None) -> None:
        """Take in how busy an engine is; more work done since the last time is activity."""
        if history := self._histories.get(server_uuid):
            history.note_load(instance, load, self._clock())

    async def wake(self, server_uuid: str) -> None:
        """Let a sleeping server's engines start; SERVER_NOT_FOUND where it is not declared or on its way out."""
        if (await self._store.get(server_uuid)).removing:
            raise not_found(server_uuid)
        if self._store.decide_run_state(server_uuid, RunState.AWAKE):
            self._history(server_uuid).restart_histories.clear()
        self.touch(server_uuid)
        self._queue.add(server_uuid)

    def view(self, declared: DeclaredServer) -> Server:
        """A server as it is now, in the light of its present spec."""
        history = self._histories.get(declared.server_uuid) or self._new_history(declared.server_uuid)
        desired = self._desired(declared)
        return self._describe(declared, desired, self._observe(declared, desired, history), history)

    def claims(self, servers: Iterable[DeclaredServer]) -> list[Claim]:
        """The engines that these servers may run: all replicas of those that are awake, and whatever else still runs."""
        found = []
        for declared in servers:
            running = self._starts.claim(declared.server_uuid)
            wanted = 0 if declared.removing or declared.run_state is not RunState.AWAKE else declared.replicas
            engines = max(wanted, running.engines if running else 0)
            found.append(Claim(_footprint(declared), engines, running.in_memory if running else 0))
        return found

    async def _reconcile(self, server_uuid: str) -> None:
        declared = await self._store.find(server_uuid)
        if declared is None:
            self._disown(server_uuid)
        else:
            await self._reconcile_server(declared, self._history(server_uuid))

    async def _reconcile_server(self, declared: DeclaredServer, history: ServerHistory) -> None:
        server_uuid = declared.server_uuid
        desired = self._desired(declared)
        for instance in history.update(desired.spec_hash, self._runtime.engines(server_uuid), self._clock()):
            self._runtime.forget(instance)
        await self._ask_draining(server_uuid, history)
        self._starts.observe(server_uuid, _footprint(declared), self._runtime.engines(server_uuid))
        decision = self._admitted(plan(desired, self._observe(declared, desired, history)), declared, history)
        if FallAsleep() in decision.actions and not await self._is_idle(server_uuid):
            self._queue.add(server_uuid)
            return
        for action in decision.actions:
            await self._act(action, declared, history)
        if Forget() in decision.actions:
            self._queue_startable()
            return
        self._starts.observe(server_uuid, _footprint(declared), self._runtime.engines(server_uuid))
        self._publish_status(declared, desired, decision, history)
        self._requeue(decision, history, server_uuid)
        self._queue_startable()

    def _admitted(self, decision: Decision, declared: DeclaredServer, history: ServerHistory) -> Decision:
        """The decision without the starts that have to wait."""
        server_uuid, footprint = declared.server_uuid, _footprint(declared)
        wanted = [action.replica for action in decision.actions if isinstance(action, Start)]
        verdicts = self._starts.request(server_uuid, wanted, footprint)
        history.pending_starts = {
            replica: verdict for replica, verdict in verdicts.items() if not isinstance(verdict, StartNow)
        }
        no_room = any(isinstance(verdict, NotEnoughMemory) for verdict in history.pending_starts.values())
        if no_room and self._starts.shortage_without(server_uuid, footprint) is None:
            history.make_room(self._runtime.engines(server_uuid))
        actions = [
            action
            for action in decision.actions
            if not (isinstance(action, Start) and action.replica in history.pending_starts)
        ]
        return replace(decision, actions=tuple(actions))

    def _queue_startable(self) -> None:
        """Others may start an engine now, since an engine has come, ended or become ready."""
        for server_uuid in self._starts.startable():
            self._queue.add(server_uuid)

    def _publish_status(
        self, declared: DeclaredServer, desired: Desired, decision: Decision, history: ServerHistory
    ) -> None:
        """Tell Envoy and everyone else. Nothing here gives way to another task."""
        self._publish(declared, decision, history)
        history.generation = declared.generation
        history.reconciled = desired_version(declared)
        self._statuses.put(self._describe(declared, desired, self._observe(declared, desired, history), history))

    def _desired(self, declared: DeclaredServer) -> Desired:
        return Desired(
            replicas=declared.replicas,
            spec_hash=launch.spec_hash(declared.spec, self._settings),
            run_state=declared.run_state,
            removing=declared.removing,
            idle_sleep=declared.spec.idle_sleep.ToMilliseconds() / 1000,
            grace=self._settings.drain_seconds,
        )

    async def _ask_draining(self, server_uuid: str, history: ServerHistory) -> None:
        for engine in self._runtime.engines(server_uuid):
            if engine.instance in history.draining and engine.phase is EnginePhase.READY:
                # Only once Envoy sends it no more: an answer from before may be older than its last request.
                withdrawn = history.publication.is_withdrawn(engine.instance)
                history.loads[engine.instance] = await self._runtime.load(engine.instance) if withdrawn else None

    def _observe(self, declared: DeclaredServer, desired: Desired, history: ServerHistory) -> ObservedState:
        engines = self._runtime.engines(declared.server_uuid)
        available = self._model(declared).availability is Availability.AVAILABLE
        return history.observe(desired.spec_hash, engines, self._clock(), available, _names(declared))

    async def _act(self, action: Action, declared: DeclaredServer, history: ServerHistory) -> None:
        match action:
            case Start(replica):
                spec = launch.launch_spec(
                    declared.server_uuid, replica, declared.spec, self._settings, self._model_file
                )
                await self._runtime.start(spec)
            case Drain(instance):
                history.draining[instance] = self._clock()
                history.loads.pop(instance, None)
            case Resume(instance):
                history.draining.pop(instance, None)
            case Stop(instance, grace):
                self._runtime.stop(instance, grace)
            case Locate():
                assert self._models is not None, "looks begin after open()"
                for model_uuid in needed_models(declared.spec):
                    if self._model_file(model_uuid).availability is not Availability.AVAILABLE:
                        self._models.locate(model_uuid)
            case FallAsleep():
                log.info("falls asleep", server=declared.server_uuid)
                self._store.decide_run_state(declared.server_uuid, RunState.ASLEEP_IDLE, only_from=RunState.AWAKE)
                self._queue.add(declared.server_uuid)
            case Forget():
                await self._store.forget(declared.server_uuid)
                self._forget(declared.server_uuid)

    def _publish(self, declared: DeclaredServer, decision: Decision, history: ServerHistory) -> None:
        addresses = {engine.instance: engine.address for engine in self._runtime.engines(declared.server_uuid)}
        endpoints = ServerEndpoints(
            server_uuid=declared.server_uuid,
            model_names=_names(declared),
            ready=tuple(addresses[instance] for instance in decision.endpoints),
            max_connections=launch.connections(declared.spec, self._settings),
            ask=declared.spec.metered,
            context=slot_context(declared.spec.parameters, self._model(declared).context_length),
            silence_seconds=launch.response_timeout(declared.spec),
            budget_seconds=launch.wake_budget(declared.spec),
        )
        history.publication.publish(endpoints, decision.endpoints)

    def _describe(
        self, declared: DeclaredServer, desired: Desired, state: ObservedState, history: ServerHistory
    ) -> Server:
        server = build_status(
            declared,
            desired,
            state,
            self._model(declared),
            MemoryRequirement(*self._starts.memory_for(_footprint(declared))),
            self._settings.endpoint(declared.server_uuid),
            self._statuses.get(declared.server_uuid),
            history.generation,
            datetime.now(UTC),
        )
        # llama.cpp names the file that it cannot load.
        for condition in server.conditions:
            condition.message = self._hide(condition.message)
        for replica in server.replica_statuses:
            replica.message = self._hide(replica.message)
        return server

    def _requeue(self, decision: Decision, history: ServerHistory, server_uuid: str) -> None:
        seconds = decision.requeue_after
        if Locate() in decision.actions:
            seconds = min(seconds, RETRY_SECONDS)
        for verdict in history.pending_starts.values():
            seconds = min(seconds, MEMORY_POLL_SECONDS if isinstance(verdict, NotEnoughMemory) else TURN_POLL_SECONDS)
        seconds = min(seconds, history.steady_in(self._runtime.engines(server_uuid), self._clock()))
        if seconds < math.inf:
            self._queue.add_after(server_uuid, seconds)

    async def _is_idle(self, server_uuid: str) -> bool:
        """Ask the engines themselves, once more, before they are put to sleep; a server that requests wait for is not idle."""
        if self._demand.waits_for(server_uuid):
            self.touch(server_uuid)
            return False
        for engine in self._runtime.engines(server_uuid):
            if engine.phase is EnginePhase.READY:
                before = self._histories[server_uuid].last_activity
                self.note_load(server_uuid, engine.instance, await self._runtime.load(engine.instance))
                if self._histories[server_uuid].last_activity != before:
                    return False
        return True

    def _history(self, server_uuid: str) -> ServerHistory:
        if server_uuid not in self._histories:
            history = self._histories[server_uuid] = self._new_history(server_uuid)
            history.last_activity = self._clock()
        return self._histories[server_uuid]

    def _new_history(self, server_uuid: str) -> ServerHistory:
        return ServerHistory(Publication(server_uuid, self._control, self._queue.add))

    def _disown(self, server_uuid: str) -> None:
        """Engines of a server that nobody has declared end."""
        for engine in self._runtime.engines(server_uuid):
            if engine.phase is EnginePhase.ENDED:
                self._runtime.forget(engine.instance)
            else:
                self._runtime.stop(engine.instance, self._settings.drain_seconds)
        if not self._runtime.engines(server_uuid):
            self._forget(server_uuid)

    def _forget(self, server_uuid: str) -> None:
        history = self._histories.pop(server_uuid, None)
        self._starts.forget(server_uuid)
        if history:
            history.publication.cancel()
        self._control.remove_server(server_uuid)
        self._runtime.drop_logs(server_uuid)
        last = self._statuses.get(server_uuid)
        if last is not None:
            log.info("removed", server=server_uuid)
            self._statuses.remove(stopped_status(last, datetime.now(UTC)))

    def _model(self, declared: DeclaredServer) -> ModelFile:
        """What is known of its model; of another one that it needs where that one is not there."""
        served, *others = (self._model_file(model_uuid) for model_uuid in needed_models(declared.spec))
        return next((fact for fact in (served, *others) if fact.availability is not Availability.AVAILABLE), served)

    def _model_file(self, model_uuid: str) -> ModelFile:
        return self._models.get(model_uuid) if self._models else ModelFile(Availability.UNKNOWN)

    async def _resync_once(self) -> None:
        """Read what is declared anew and look at every server: while the database is away, at those that are known."""
        try:
            await self._store.refresh()
        finally:
            await self._queue_all()

    async def _queue_all(self) -> None:
        """Look at every server that has engines or differs from what was last looked at; one that sleeps on costs next to nothing."""
        declared = {each.server_uuid: desired_version(each) for each in await self._store.all()}
        asleep = {
            name
            for name, history in self._histories.items()
            if history.reconciled is not None
            and history.reconciled == declared.get(name)
            and history.reconciled[1] is not RunState.AWAKE
        }
        with_engines = set(self._runtime.servers())
        for name in (declared.keys() | self._histories.keys()) - asleep | with_engines:
            self._queue.add(name)


def _footprint(declared: DeclaredServer) -> Footprint:
    return of_one_engine(declared.spec.model_uuid, declared.engine_memory_bytes, declared.shared_weights_bytes)


def _names(declared: DeclaredServer) -> tuple[str, ...]:
    return (declared.spec.model_name,) if declared.spec.model_name else ()
