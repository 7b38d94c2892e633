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

from controller import orders
from controller.board import Board
from controller.capacity import RecentMemory
from controller.declared import Declared, DeclaredServers, Rest, not_found
from controller.demand import Demand
from controller.footprint import Claim, Footprint, of_one_engine
from controller.models import RETRY_SECONDS, ModelFact, Models, Place, needed_models
from controller.plan import (
    Action,
    Decision,
    Drain,
    FallAsleep,
    Forget,
    Locate,
    Resume,
    Situation,
    Start,
    Stop,
    Wish,
    plan,
)
from controller.publication import Publication
from controller.queue import WorkQueue
from controller.remembered import Remembered, wishes
from controller.runtimes import Load, Phase, Runtime
from controller.starts import Go, NoRoom, Starts, default_limit
from controller.status import Memory, describe, stopped
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
        board: Board,
        clock: Callable[[], float] = time.monotonic,
        demand: Demand | None = None,
    ) -> None:
        self._settings = settings
        self._hide = redactor(settings)
        self._store = store
        self._runtime = runtime
        self._control = control
        self._board = board
        self._clock = clock
        self._memories: dict[str, Remembered] = {}
        self._queue = WorkQueue(self._look)
        self._tasks = [
            BackgroundTask(
                "look at every server", self._resync_once, report_failure, every=RESYNC_SECONDS, immediately=False
            ),
            BackgroundTask("write what was decided", store.write_decided, report_failure, longest=RESYNC_SECONDS / 2),
        ]
        self._models: Models | None = None
        self._memory_now = RecentMemory(clock)
        self._demand = demand or Demand()
        self._starts = Starts(
            settings.concurrent_starts or default_limit(usable_cores()),
            settings.memory_reserve_bytes,
            self._memory_now.read,
            self._demand.waits_for,
            clock,
        )

    async def open(self, models: Models) -> None:
        """Adopt what runs, look at every server once, then go on by events. Afterwards the control plane knows all endpoints."""
        self._models = models
        await self._runtime.open(self._queue.add)
        for declared in await self._store.all():
            try:
                await self._look_at(declared, self._memory(declared.server_uuid))
            except Exception as failure:
                # One server must not keep all others from being served.
                report_failure(f"look at server {declared.server_uuid}", failure)
                self._board.put(self.view(declared))
                self._queue.add(declared.server_uuid)
        self._board.synced.set()
        self._queue.start()
        for server_uuid in self._runtime.servers():
            self._queue.add(server_uuid)
        for task in self._tasks:
            task.start()

    async def close(self) -> None:
        """Stop looking. Engines stay as they are."""
        await asyncio.gather(*(task.close() for task in self._tasks))
        await self._queue.close()
        await asyncio.gather(*(memory.publication.close() for memory in self._memories.values()))

    def changed(self, server_uuid: str) -> None:
        """Something about a server may have changed: look at it soon."""
        self._queue.add(server_uuid)

    def model_changed(self, model_uuid: str) -> None:
        """Something about a model may have changed: look at its servers soon."""
        for server in self._board.all():
            if model_uuid in needed_models(server.spec):
                self._queue.add(server.server_uuid)

    def touch(self, server_uuid: str) -> None:
        """A server has work: it is not to fall asleep now."""
        if memory := self._memories.get(server_uuid):
            memory.last_activity = self._clock()

    def note_load(self, server_uuid: str, instance: str, load: Load | None) -> None:
        """Take in how busy an engine is; more work done since the last time is activity."""
        if memory := self._memories.get(server_uuid):
            memory.note_load(instance, load, self._clock())

    async def wake(self, server_uuid: str) -> None:
        """Let a sleeping server's engines start; SERVER_NOT_FOUND where it is not declared or on its way out."""
        if (await self._store.get(server_uuid)).removing:
            raise not_found(server_uuid)
        if self._store.decide_rest(server_uuid, Rest.AWAKE):
            self._memory(server_uuid).histories.clear()
        self.touch(server_uuid)
        self._queue.add(server_uuid)

    def view(self, declared: Declared) -> Server:
        """A server as it is now, in the light of its present spec."""
        memory = self._memories.get(declared.server_uuid) or self._nothing(declared.server_uuid)
        wish = self._wish(declared)
        return self._describe(declared, wish, self._situation(declared, wish, memory), memory)

    def claims(self, servers: Iterable[Declared]) -> list[Claim]:
        """The engines that these servers may run: all replicas of those that are awake, and whatever else still runs."""
        found = []
        for declared in servers:
            running = self._starts.claim(declared.server_uuid)
            wanted = 0 if declared.removing or declared.rest is not Rest.AWAKE else declared.replicas
            engines = max(wanted, running.engines if running else 0)
            found.append(Claim(_footprint(declared), engines, running.in_memory if running else 0))
        return found

    async def _look(self, server_uuid: str) -> None:
        declared = await self._store.find(server_uuid)
        if declared is None:
            self._disown(server_uuid)
        else:
            await self._look_at(declared, self._memory(server_uuid))

    async def _look_at(self, declared: Declared, memory: Remembered) -> None:
        server_uuid = declared.server_uuid
        wish = self._wish(declared)
        for instance in memory.take_in(wish.spec_hash, self._runtime.engines(server_uuid), self._clock()):
            self._runtime.forget(instance)
        await self._ask_draining(server_uuid, memory)
        self._starts.saw(server_uuid, _footprint(declared), self._runtime.engines(server_uuid))
        decision = self._admitted(plan(wish, self._situation(declared, wish, memory)), declared, memory)
        if FallAsleep() in decision.actions and not await self._is_idle(server_uuid):
            self._queue.add(server_uuid)
            return
        for action in decision.actions:
            await self._act(action, declared, memory)
        if Forget() in decision.actions:
            self._look_at_due()
            return
        self._starts.saw(server_uuid, _footprint(declared), self._runtime.engines(server_uuid))
        self._tell(declared, wish, decision, memory)
        self._look_again(decision, memory, server_uuid)
        self._look_at_due()

    def _admitted(self, decision: Decision, declared: Declared, memory: Remembered) -> Decision:
        """The decision without the starts that have to wait."""
        server_uuid, footprint = declared.server_uuid, _footprint(declared)
        wanted = [action.replica for action in decision.actions if isinstance(action, Start)]
        verdicts = self._starts.ask(server_uuid, wanted, footprint)
        memory.waiting = {replica: verdict for replica, verdict in verdicts.items() if not isinstance(verdict, Go)}
        no_room = any(isinstance(verdict, NoRoom) for verdict in memory.waiting.values())
        if no_room and self._starts.room_without(server_uuid, footprint) is None:
            memory.make_room(self._runtime.engines(server_uuid))
        actions = [
            action
            for action in decision.actions
            if not (isinstance(action, Start) and action.replica in memory.waiting)
        ]
        return replace(decision, actions=tuple(actions))

    def _look_at_due(self) -> None:
        """Others may start an engine now, since an engine has come, ended or become ready."""
        for server_uuid in self._starts.due():
            self._queue.add(server_uuid)

    def _tell(self, declared: Declared, wish: Wish, decision: Decision, memory: Remembered) -> None:
        """Tell Envoy and everyone else. Nothing here gives way to another task."""
        self._publish(declared, decision, memory)
        memory.generation = declared.generation
        memory.looked = wishes(declared)
        self._board.put(self._describe(declared, wish, self._situation(declared, wish, memory), memory))

    def _wish(self, declared: Declared) -> Wish:
        return Wish(
            replicas=declared.replicas,
            spec_hash=orders.spec_hash(declared.spec, self._settings),
            rest=declared.rest,
            removing=declared.removing,
            idle_sleep=declared.spec.idle_sleep.ToMilliseconds() / 1000,
            grace=self._settings.drain_seconds,
        )

    async def _ask_draining(self, server_uuid: str, memory: Remembered) -> None:
        for engine in self._runtime.engines(server_uuid):
            if engine.instance in memory.draining and engine.phase is Phase.READY:
                # Only once Envoy sends it no more: an answer from before may be older than its last request.
                withdrawn = memory.publication.has_left(engine.instance)
                memory.loads[engine.instance] = await self._runtime.load(engine.instance) if withdrawn else None

    def _situation(self, declared: Declared, wish: Wish, memory: Remembered) -> Situation:
        engines = self._runtime.engines(declared.server_uuid)
        available = self._model(declared).place is Place.AVAILABLE
        return memory.situation(wish.spec_hash, engines, self._clock(), available, _names(declared))

    async def _act(self, action: Action, declared: Declared, memory: Remembered) -> None:
        match action:
            case Start(replica):
                order = orders.order(declared.server_uuid, replica, declared.spec, self._settings, self._fact)
                await self._runtime.start(order)
            case Drain(instance):
                memory.draining[instance] = self._clock()
                memory.loads.pop(instance, None)
            case Resume(instance):
                memory.draining.pop(instance, None)
            case Stop(instance, grace):
                self._runtime.stop(instance, grace)
            case Locate():
                assert self._models is not None, "looks begin after open()"
                for model_uuid in needed_models(declared.spec):
                    if self._fact(model_uuid).place is not Place.AVAILABLE:
                        self._models.locate(model_uuid)
            case FallAsleep():
                log.info("falls asleep", server=declared.server_uuid)
                self._store.decide_rest(declared.server_uuid, Rest.IDLE, only_from=Rest.AWAKE)
                self._queue.add(declared.server_uuid)
            case Forget():
                await self._store.forget(declared.server_uuid)
                self._forget(declared.server_uuid)

    def _publish(self, declared: Declared, decision: Decision, memory: Remembered) -> None:
        addresses = {engine.instance: engine.address for engine in self._runtime.engines(declared.server_uuid)}
        endpoints = ServerEndpoints(
            server_uuid=declared.server_uuid,
            model_names=_names(declared),
            ready=tuple(addresses[instance] for instance in decision.endpoints),
            max_connections=orders.connections(declared.spec, self._settings),
            ask=declared.spec.metered,
            context=slot_context(declared.spec.parameters, self._model(declared).context_length),
            silence_seconds=orders.silence(declared.spec),
            budget_seconds=orders.budget(declared.spec),
        )
        memory.publication.tell(endpoints, decision.endpoints)

    def _describe(self, declared: Declared, wish: Wish, situation: Situation, memory: Remembered) -> Server:
        server = describe(
            declared,
            wish,
            situation,
            self._model(declared),
            Memory(*self._starts.room(_footprint(declared))),
            self._settings.endpoint(declared.server_uuid),
            self._board.get(declared.server_uuid),
            memory.generation,
            datetime.now(UTC),
        )
        # llama.cpp names the file that it cannot load.
        for condition in server.conditions:
            condition.message = self._hide(condition.message)
        for replica in server.replica_statuses:
            replica.message = self._hide(replica.message)
        return server

    def _look_again(self, decision: Decision, memory: Remembered, server_uuid: str) -> None:
        seconds = decision.look_again
        if Locate() in decision.actions:
            seconds = min(seconds, RETRY_SECONDS)
        for verdict in memory.waiting.values():
            seconds = min(seconds, MEMORY_POLL_SECONDS if isinstance(verdict, NoRoom) else TURN_POLL_SECONDS)
        seconds = min(seconds, memory.steady_in(self._runtime.engines(server_uuid), self._clock()))
        if seconds < math.inf:
            self._queue.add_after(server_uuid, seconds)

    async def _is_idle(self, server_uuid: str) -> bool:
        """Ask the engines themselves, once more, before they are put to sleep; a server that requests wait for is not idle."""
        if self._demand.waits_for(server_uuid):
            self.touch(server_uuid)
            return False
        for engine in self._runtime.engines(server_uuid):
            if engine.phase is Phase.READY:
                before = self._memories[server_uuid].last_activity
                self.note_load(server_uuid, engine.instance, await self._runtime.load(engine.instance))
                if self._memories[server_uuid].last_activity != before:
                    return False
        return True

    def _memory(self, server_uuid: str) -> Remembered:
        if server_uuid not in self._memories:
            memory = self._memories[server_uuid] = self._nothing(server_uuid)
            memory.last_activity = self._clock()
        return self._memories[server_uuid]

    def _nothing(self, server_uuid: str) -> Remembered:
        return Remembered(Publication(server_uuid, self._control, self._queue.add))

    def _disown(self, server_uuid: str) -> None:
        """Engines of a server that nobody has declared end."""
        for engine in self._runtime.engines(server_uuid):
            if engine.phase is Phase.ENDED:
                self._runtime.forget(engine.instance)
            else:
                self._runtime.stop(engine.instance, self._settings.drain_seconds)
        if not self._runtime.engines(server_uuid):
            self._forget(server_uuid)

    def _forget(self, server_uuid: str) -> None:
        memory = self._memories.pop(server_uuid, None)
        self._starts.forget(server_uuid)
        if memory:
            memory.publication.cancel()
        self._control.remove_server(server_uuid)
        self._runtime.drop_logs(server_uuid)
        last = self._board.get(server_uuid)
        if last is not None:
            log.info("removed", server=server_uuid)
            self._board.remove(stopped(last, datetime.now(UTC)))

    def _model(self, declared: Declared) -> ModelFact:
        """What is known of its model; of another one that it needs where that one is not there."""
        served, *others = (self._fact(model_uuid) for model_uuid in needed_models(declared.spec))
        return next((fact for fact in (served, *others) if fact.place is not Place.AVAILABLE), served)

    def _fact(self, model_uuid: str) -> ModelFact:
        return self._models.fact(model_uuid) if self._models else ModelFact(Place.UNKNOWN)

    async def _resync_once(self) -> None:
        """Read what is declared anew and look at every server: while the database is away, at those that are known."""
        try:
            await self._store.refresh()
        finally:
            await self._look_at_all()

    async def _look_at_all(self) -> None:
        """Look at every server that has engines or differs from what was last looked at; one that sleeps on costs next to nothing."""
        declared = {each.server_uuid: wishes(each) for each in await self._store.all()}
        asleep = {
            name
            for name, memory in self._memories.items()
            if memory.looked is not None and memory.looked == declared.get(name) and memory.looked[1] is not Rest.AWAKE
        }
        with_engines = set(self._runtime.servers())
        for name in (declared.keys() | self._memories.keys()) - asleep | with_engines:
            self._queue.add(name)


def _footprint(declared: Declared) -> Footprint:
    return of_one_engine(declared.spec.model_uuid, declared.engine_memory_bytes, declared.shared_weights_bytes)


def _names(declared: Declared) -> tuple[str, ...]:
    return (declared.spec.model_name,) if declared.spec.model_name else ()
