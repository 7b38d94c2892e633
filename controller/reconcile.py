"""Reconciles declared servers: reads the desired and the observed state of one server, plans, acts, and reports.

A change of a declaration, of an engine or of a model file, or an acknowledgement of Envoy, adds the server's id to the work queue; so do a
timer that the last plan set, and a resync of all servers every RESYNC_SECONDS. A worker of the queue then runs `_reconcile`, one straight
line: store -> `Observer` -> `plan` (of pods: `plan_workload`) -> `StartGate` -> `Actuator` -> `Reporter` (Envoy and status). It is level-
triggered: the same line runs for every cause, so a lost event costs only time, and a restarted controller continues the work of a killed
one. The queue never runs one server twice at the same time, because two plans from the same state would start an engine twice.

Invariant: a server is reported ready only after its endpoints were published to Envoy.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable

from controller import launch
from controller.actions import Decision, FallAsleep, Forget, Locate
from controller.actuator import Actuator
from controller.declared import DeclaredServer, RunState, engines_to_run, not_found
from controller.declared_store import DeclaredStore
from controller.demand import Demand
from controller.footprint import Claim
from controller.model_files import RETRY_SECONDS
from controller.observed import Desired
from controller.observer import Observer
from controller.plan import plan
from controller.plan_workload import plan_workload
from controller.publication import Publication
from controller.reporter import Reporter
from controller.runtimes import EngineLoad, Place
from controller.server_history import ServerHistory, desired_version
from controller.start_gate import StartGate
from controller.starts import NotEnoughMemory, StartScheduler
from controller.status_cache import StatusCache
from controller.work_queue import WorkQueue
from controller.xds.serving import ControlPlane
from llamesh.background import BackgroundTask
from llamesh.kit.config import Settings
from llamesh.kit.logs import report_failure
from llamesh.runtime_parameters import needed_models
from llamesh.v1.server_pb2 import Server

RESYNC_SECONDS = 10.0
"""Seconds between two reconciliations of every server without a cause."""
MEMORY_POLL_SECONDS = 1.0
"""Seconds between two tries of a start that waits for memory: no event reports memory that other programs free."""
TURN_POLL_SECONDS = 5.0
"""Seconds between two tries of a start that waits for other starts. An event usually comes earlier; the timer keeps the status current."""


class Reconciler:
    """Keeps declared servers running. All methods belong to one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: DeclaredStore,
        runtime: Place,
        control: ControlPlane,
        statuses: StatusCache,
        demand: Demand | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._runtime = runtime
        self._control = control
        self._statuses = statuses
        self._demand = demand or Demand()
        self._clock = time.monotonic
        self._histories: dict[str, ServerHistory] = {}
        self._queue = WorkQueue(self._reconcile)
        self._starts = StartScheduler(
            settings.concurrent_starts or runtime.start_limit(),
            settings.memory_reserve_bytes,
            runtime.memory,
            self._demand.waits_for,
            self._clock,
        )
        self._gate = StartGate(self._starts)
        self._observer = Observer(runtime, self._clock)
        self._actuator = Actuator(settings, store, runtime, self._clock)
        self._reporter = Reporter(settings, self._observer, self._starts, statuses)
        self._tasks = [
            BackgroundTask(
                "reconcile every server", self._resync_once, report_failure, every=RESYNC_SECONDS, immediately=False
            ),
            BackgroundTask("write run states", store.write_decided, report_failure, longest=RESYNC_SECONDS / 2),
        ]

    async def open(self) -> None:
        """Adopt running engines, reconcile every server once, then continue on events. Afterwards all endpoints are known."""
        await self._runtime.open(self._queue.add, self.model_changed)
        for declared in await self._store.all():
            try:
                await self._reconcile_declared(declared)
            except Exception as failure:
                # One server must not keep all others from being served.
                report_failure(f"reconcile server {declared.server_uuid}", failure)
                self._statuses.put(self.view(declared))
                self._queue.add(declared.server_uuid)
        self._statuses.synced.set()
        self._queue.start()
        for server_uuid in self._runtime.servers():
            self._queue.add(server_uuid)
        for task in self._tasks:
            task.start()

    async def close(self) -> None:
        """Stop reconciling. The engines keep running."""
        await asyncio.gather(*(task.close() for task in self._tasks))
        await self._queue.close()
        await asyncio.gather(*(history.publication.close() for history in self._histories.values()))

    def changed(self, server_uuid: str) -> None:
        """Reconcile a server soon, because something about it may have changed."""
        self._queue.add(server_uuid)

    def model_changed(self, model_uuid: str) -> None:
        """Reconcile the servers of a model soon, because something about its file may have changed."""
        for server in self._statuses.all():
            if model_uuid in needed_models(server.spec):
                self._queue.add(server.server_uuid)

    def touch(self, server_uuid: str) -> None:
        """Record that a server has work, so that it does not fall asleep now."""
        if history := self._histories.get(server_uuid):
            history.last_activity = self._clock()

    def note_load(self, server_uuid: str, instance: str, load: EngineLoad | None) -> None:
        """Record the load of an engine. A larger work counter than before is activity."""
        if history := self._histories.get(server_uuid):
            history.note_load(instance, load, self._clock())

    async def wake(self, server_uuid: str) -> None:
        """Let the engines of a sleeping server start. Raises SERVER_NOT_FOUND if it is not declared or is being removed."""
        if (await self._store.get(server_uuid)).removing:
            raise not_found(server_uuid)
        if self._store.decide_run_state(server_uuid, RunState.AWAKE):
            self._history(server_uuid).restart_histories.clear()
        self.touch(server_uuid)
        self._queue.add(server_uuid)

    def view(self, declared: DeclaredServer) -> Server:
        """Return the status of a server as of now, with its present spec."""
        history = self._histories.get(declared.server_uuid) or self._new_history(declared.server_uuid)
        return self._reporter.status(declared, self._desired(declared), history)

    def claims(self, servers: Iterable[DeclaredServer]) -> list[Claim]:
        """Return the engines that these servers may run: all replicas of awake servers, and other engines that still run."""
        found = []
        for declared in servers:
            running = self._starts.claim(declared.server_uuid)
            wanted = engines_to_run(declared.replicas, declared.run_state, declared.removing)
            engines = max(wanted, running.engines if running else 0)
            found.append(Claim(declared.footprint, engines, running.in_memory if running else 0))
        return found

    async def _reconcile(self, server_uuid: str) -> None:
        declared = await self._store.find(server_uuid)
        if declared is None:
            self._end_undeclared(server_uuid)
        else:
            await self._reconcile_declared(declared)

    async def _reconcile_declared(self, declared: DeclaredServer) -> None:
        """Read, observe, plan, admit starts, act, report, requeue."""
        history = self._history(declared.server_uuid)
        desired = self._desired(declared)
        await self._observer.refresh(desired, declared, history)
        decide = plan_workload if self._runtime.scales else plan
        decision = decide(desired, self._observer.state(desired, declared, history))
        if not self._runtime.scales:
            # Where workloads are scaled, the scheduler of the cluster decides which starts have room.
            decision = self._gate.admit(decision, declared, self._observer.engines(declared), history)
        if FallAsleep() in decision.actions and not await self._may_sleep(declared, history):
            self._queue.add(declared.server_uuid)
            return
        await self._actuator.carry_out(decision.actions, declared, history)
        if Forget() in decision.actions:
            self._forget(declared.server_uuid)
        else:
            if not self._runtime.scales:
                self._starts.observe(declared.server_uuid, declared.footprint, self._observer.engines(declared))
            self._reporter.report(declared, desired, decision, self._observer.engines(declared), history)
            self._requeue(decision, declared, history)
        self._queue_startable()

    def _desired(self, declared: DeclaredServer) -> Desired:
        return Desired(
            replicas=declared.replicas,
            spec_hash=launch.spec_hash(declared.spec, self._settings),
            run_state=declared.run_state,
            removing=declared.removing,
            idle_sleep=declared.spec.idle_sleep.ToMilliseconds() / 1000 if self._runtime.decides else 0.0,
            grace=self._settings.drain_seconds,
            accepted=declared.verdict.accepted,
        )

    async def _may_sleep(self, declared: DeclaredServer, history: ServerHistory) -> bool:
        """Return whether no request is held for the server and its engines report that they are idle."""
        if self._demand.waits_for(declared.server_uuid):
            history.last_activity = self._clock()
            return False
        return await self._observer.is_idle(declared, history)

    def _requeue(self, decision: Decision, declared: DeclaredServer, history: ServerHistory) -> None:
        """Reconcile again when time alone may change the plan."""
        if FallAsleep() in decision.actions:
            self._queue.add(declared.server_uuid)
        seconds = decision.requeue_after
        if Locate() in decision.actions:
            seconds = min(seconds, RETRY_SECONDS)
        for pending in history.pending_starts.values():
            seconds = min(seconds, MEMORY_POLL_SECONDS if isinstance(pending, NotEnoughMemory) else TURN_POLL_SECONDS)
        seconds = min(seconds, history.steady_in(self._observer.engines(declared), self._clock()))
        if seconds < math.inf:
            self._queue.add_after(declared.server_uuid, seconds)

    def _queue_startable(self) -> None:
        """Reconcile the servers whose pending start is possible now."""
        for server_uuid in self._starts.startable():
            self._queue.add(server_uuid)

    def _history(self, server_uuid: str) -> ServerHistory:
        if server_uuid not in self._histories:
            history = self._histories[server_uuid] = self._new_history(server_uuid)
            history.last_activity = self._clock()
        return self._histories[server_uuid]

    def _new_history(self, server_uuid: str) -> ServerHistory:
        return ServerHistory(Publication(server_uuid, self._control, self._queue.add))

    def _end_undeclared(self, server_uuid: str) -> None:
        """End the engines of a server that is not declared."""
        self._runtime.end_server(server_uuid, self._settings.drain_seconds)
        if not self._runtime.engines(server_uuid):
            self._forget(server_uuid)

    def _forget(self, server_uuid: str) -> None:
        history = self._histories.pop(server_uuid, None)
        self._starts.forget(server_uuid)
        if history:
            history.publication.cancel()
        self._control.remove_server(server_uuid)
        self._runtime.drop_logs(server_uuid)
        self._reporter.removed(server_uuid)

    async def _resync_once(self) -> None:
        """Read the declared servers and reconcile all of them; if the database is unavailable, reconcile the cached ones."""
        try:
            await self._store.refresh()
        finally:
            await self._queue_all()

    async def _queue_all(self) -> None:
        """Queue every server, except servers that sleep without engines and have not changed since their last reconciliation."""
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
