"""Says how a server is: state, conditions with reasons, replicas. Pure, like the plan it speaks of.

Invariant: the same situation gives the same words; only a condition whose status changed gets a new transition time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.declared import Declared, Rest
from controller.models import ModelFact, Place
from controller.plan import Seen, Situation, Wish
from controller.runtimes import Liveness, Phase
from controller.starts import NoRoom
from llamesh.runtime_parameters import flags
from llamesh.sizes import size
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Condition, Replica, Server

_TRUE = server_pb2.CONDITION_STATUS_TRUE
_FALSE = server_pb2.CONDITION_STATUS_FALSE
_UNKNOWN = server_pb2.CONDITION_STATUS_UNKNOWN
_OUT_OF_MEMORY = "OutOfMemory"
_GOING = "Stopping"
_NO_MODEL = {
    Place.MISSING: "ModelNotFound",
    Place.CORRUPT: "ModelCorrupt",
    Place.UNREACHABLE: "ModelUnreachable",
}
"""Why there is no file to start an engine with."""
_DOUBTS = {
    Liveness.SUSPECT: "InferenceSilent",
    Liveness.LOST: "EngineUnreachable",
    Liveness.STUCK: "InferenceStuck",
}
"""Reasons of the Ready condition while an engine is in doubt."""
_SAME_MOMENT_MS = 500


@dataclass(frozen=True, slots=True)
class Memory:
    """What one more engine needs, and what it could have now."""

    needed_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class _Verdict:
    status: server_pb2.ConditionStatus.ValueType
    reason: str
    message: str


def describe(
    declared: Declared,
    wish: Wish,
    situation: Situation,
    model: ModelFact,
    memory: Memory | None,
    endpoint: str,
    previous: Server | None,
    observed_generation: int,
    now: datetime,
) -> Server:
    """The whole server as it is told to others."""
    view = _View(wish, situation, model)
    server = Server(
        server_uuid=declared.server_uuid,
        model_uuid=declared.spec.model_uuid,
        model_name=declared.spec.model_name,
        state=view.state(),
        endpoint=endpoint,
        replicas=declared.replicas,
        ready_replicas=view.serving if situation.envoy else 0,
        runtime_params=flags(declared.spec.parameters),
        spec=declared.spec,
        replica_statuses=view.replicas(),
        generation=declared.generation,
        observed_generation=observed_generation,
        etag=declared.etag,
        owner=declared.owner,
    )
    server.create_time.FromDatetime(declared.create_time)
    verdicts = {
        "Ready": view.ready(),
        "Progressing": view.progressing(),
        "ModelAvailable": view.model_available(),
        "FitsMemory": view.fits_memory(memory if declared.engine_memory_bytes else None),
        "Routable": view.routable(),
    }
    _set_next_start(server, view.next_start_in(), previous, now)
    before = {condition.type: condition for condition in previous.conditions} if previous else {}
    for kind, verdict in verdicts.items():
        server.conditions.append(_condition(kind, verdict, before.get(kind), observed_generation, now))
    if previous is None or (previous.state, previous.generation) != (server.state, server.generation):
        server.update_time.FromDatetime(now if previous else declared.update_time)
    else:
        server.update_time.CopyFrom(previous.update_time)
    return server


def stopped(last: Server, now: datetime) -> Server:
    """The last word about a server that was removed."""
    server = Server()
    server.CopyFrom(last)
    server.state = server_pb2.SERVER_STATE_STOPPED
    server.ready_replicas = 0
    del server.replica_statuses[:]
    del server.conditions[:]
    server.update_time.FromDatetime(now)
    return server


def is_going(server: Server) -> bool:
    """Whether a server is being removed, rather than falling asleep."""
    return any(condition.type == "Ready" and condition.reason == _GOING for condition in server.conditions)


def ready_reason(server: Server) -> str:
    """Why not every engine answers, in one word."""
    return next((condition.reason for condition in server.conditions if condition.type == "Ready"), "")


def is_routable(server: Server, generation: int) -> bool:
    """Whether Envoy routes requests for a server as it was declared at this generation or later."""
    routable = any(condition.type == "Routable" and condition.status == _TRUE for condition in server.conditions)
    return routable and server.observed_generation >= generation


def why_not_ready(server: Server) -> str:
    """Why not every engine answers, for people."""
    return next((condition.message for condition in server.conditions if condition.type == "Ready"), "")


def _set_next_start(server: Server, seconds: float | None, previous: Server | None, now: datetime) -> None:
    """Note the moment, the same as before if it is the same but for the grain of the clock."""
    if seconds is None:
        return
    server.next_start_time.FromDatetime(now + timedelta(seconds=seconds))
    if previous is not None and previous.HasField("next_start_time"):
        apart = previous.next_start_time.ToMilliseconds() - server.next_start_time.ToMilliseconds()
        if abs(apart) < _SAME_MOMENT_MS:
            server.next_start_time.CopyFrom(previous.next_start_time)


class _View:
    def __init__(self, wish: Wish, situation: Situation, model: ModelFact) -> None:
        self._wish = wish
        self._now = situation
        self._model = model
        self._running = [seen for seen in situation.engines if seen.engine.phase is not Phase.ENDED]
        serving = [seen for seen in self._running if situation.serves(seen)]
        self.serving = len({seen.engine.replica for seen in serving if seen.engine.replica < wish.wanted})
        self._replacing = any(seen.engine.spec_hash != wish.spec_hash for seen in serving)
        histories = [situation.history(replica) for replica in range(wish.wanted)]
        self._worst = max(histories, key=lambda history: history.failures, default=None)
        self._doubtful = [
            seen
            for seen in self._running
            if seen.engine.phase is Phase.READY and seen.engine.liveness is not Liveness.ALIVE
        ]

    def state(self) -> server_pb2.ServerState.ValueType:
        """In one word."""
        if self._wish.removing:
            return server_pb2.SERVER_STATE_STOPPING
        if not self._wish.wanted:
            return server_pb2.SERVER_STATE_STOPPING if self._running else server_pb2.SERVER_STATE_SLEEPING
        if self.serving and not self._now.envoy:
            return server_pb2.SERVER_STATE_STARTING
        if self.serving == self._wish.wanted and not self._failing:
            return server_pb2.SERVER_STATE_READY
        if self.serving or self._doubtful:
            return server_pb2.SERVER_STATE_DEGRADED
        if self._failing or self._model.place in (Place.MISSING, Place.CORRUPT):
            return server_pb2.SERVER_STATE_FAILING
        return server_pb2.SERVER_STATE_STARTING

    def next_start_in(self) -> float | None:
        """Seconds until a failed engine may be started again; None if none failed, or one is starting or answers."""
        if any(seen.engine.phase in (Phase.STARTING, Phase.READY) for seen in self._running) or not self._worst:
            return None
        if not self._worst.failures:
            return None
        moments = [self._now.history(replica).not_before for replica in range(self._wish.wanted)]
        return max(0.0, min(moments) - self._now.now)

    def ready(self) -> _Verdict:
        """Whether every wanted engine answers."""
        wanted = self._wish.wanted
        if self._wish.removing:
            return _Verdict(_FALSE, _GOING, "the server is being stopped")
        if not wanted:
            why = "it was told to" if self._wish.rest is Rest.ASKED else "no request came"
            return _Verdict(_FALSE, "Asleep", f"asleep, because {why}; the next request wakes it")
        if self.serving and not self._now.envoy:
            return _Verdict(_UNKNOWN, "EnvoyNotConnected", "engines answer, but no Envoy has said that it knows them")
        if self.serving == wanted and not self._failing:
            return _Verdict(_TRUE, "AllReady", f"{wanted} of {wanted} engines answer")
        so_far = f"{self.serving} of {wanted} engines answer"
        if self._model.place in _NO_MODEL:
            return _Verdict(_FALSE, _NO_MODEL[self._model.place], f"{so_far}: {self._model.message}")
        if self._doubtful:
            engine = min((seen.engine for seen in self._doubtful), key=lambda engine: engine.replica)
            return _Verdict(_FALSE, _DOUBTS[engine.liveness], f"{so_far}; replica {engine.replica}: {engine.complaint}")
        if self._no_room:
            return _Verdict(_FALSE, "WaitsForMemory", f"{so_far}: {self._no_room}")
        if self._worst and self._worst.failures:
            return _Verdict(_FALSE, self._worst.reason, f"{so_far}: {self._worst.message}")
        if self._now.waiting:
            return _Verdict(_FALSE, "WaitsForOtherStarts", f"{so_far}: {next(iter(self._now.waiting.values()))}")
        return _Verdict(_FALSE, "Starting", so_far)

    def progressing(self) -> _Verdict:
        """Whether something is under way."""
        if self._wish.removing or not self._wish.wanted:
            if self._running:
                return _Verdict(_TRUE, "Draining", "running requests are finished")
            return _Verdict(_FALSE, "Stable", "nothing runs, as it should be")
        if self._no_room:
            # Ready is also said to those who send requests, and they need not know of other servers.
            return _Verdict(_FALSE, "WaitsForMemory", self._no_room.explained)
        if self._failing:
            return _Verdict(_FALSE, "BackingOff", "engines are started again with growing pauses")
        if self._replacing:
            return _Verdict(_TRUE, "Replacing", "engines are replaced one after the other")
        if self._now.waiting:
            return _Verdict(_TRUE, "WaitsForOtherStarts", f"an engine {next(iter(self._now.waiting.values()))}")
        if self.serving < self._wish.wanted:
            return _Verdict(_TRUE, "Starting", "engines are being started")
        return _Verdict(_FALSE, "Stable", "everything is as it should be")

    def model_available(self) -> _Verdict:
        """Whether the model's file is there."""
        place = self._model.place
        if place is Place.AVAILABLE or (place is Place.UNKNOWN and self._running):
            return _Verdict(_TRUE, "Located", "the model's file is on this machine")
        if place in (Place.MISSING, Place.CORRUPT):
            return _Verdict(_FALSE, _NO_MODEL[place], self._model.message)
        if place is Place.UNREACHABLE:
            return _Verdict(_UNKNOWN, "ModelUnreachable", self._model.message)
        if place is Place.LOCATING:
            return _Verdict(_UNKNOWN, "Locating", "the model's file is being brought to this machine")
        return _Verdict(_UNKNOWN, "NotAsked", "no engine has needed the model's file yet")

    def fits_memory(self, memory: Memory | None) -> _Verdict:
        """Whether one more engine has room."""
        if self._worst and self._worst.failures and self._worst.reason == _OUT_OF_MEMORY:
            return _Verdict(_FALSE, _OUT_OF_MEMORY, self._worst.message)
        if self.serving and self.serving == self._wish.wanted:
            return _Verdict(_TRUE, "Running", "the engines are in memory")
        if self._no_room:
            return _Verdict(_FALSE, "NotEnoughMemory", str(self._no_room))
        if memory is None:
            return _Verdict(_UNKNOWN, "NotEstimated", "what an engine needs is not known")
        numbers = f"an engine needs about {size(memory.needed_bytes)}, {size(memory.free_bytes)} are free"
        if memory.needed_bytes > memory.free_bytes:
            return _Verdict(_FALSE, "NotEnoughMemory", numbers)
        return _Verdict(_TRUE, "Estimated", numbers)

    def routable(self) -> _Verdict:
        """Whether a request for the server, by id or name, gets here."""
        if self._now.routable:
            return _Verdict(_TRUE, "Acknowledged", "Envoy routes requests for this server")
        if not self._now.envoy:
            return _Verdict(_UNKNOWN, "EnvoyNotConnected", "no Envoy has said that it routes requests for this server")
        return _Verdict(_FALSE, "NotAcknowledged", "Envoy has not yet said that it routes requests for this server")

    def replicas(self) -> Sequence[Replica]:
        """One entry an engine; and one for a replica that waits for its next start."""
        entries = [self._replica(seen) for seen in sorted(self._running, key=lambda seen: seen.engine.replica)]
        present = {entry.index for entry in entries}
        for index in range(self._wish.wanted):
            history = self._now.history(index)
            if index not in present and history.restarts:
                entries.append(
                    Replica(
                        index=index,
                        state=server_pb2.REPLICA_STATE_BACKOFF,
                        restarts=history.restarts,
                        message=history.message,
                    )
                )
        return sorted(entries, key=lambda entry: entry.index)

    def _replica(self, seen: Seen) -> Replica:
        history = self._now.history(seen.engine.replica)
        draining = seen.engine.phase is Phase.STOPPING or seen.draining_since is not None
        state, message = server_pb2.REPLICA_STATE_STARTING, "the model is being loaded"
        if draining:
            state, message = server_pb2.REPLICA_STATE_DRAINING, "running requests are finished"
        elif seen in self._doubtful:
            # As with one that drains: it gets no new requests, and may finish those that it has.
            state, message = server_pb2.REPLICA_STATE_DRAINING, seen.engine.complaint
        elif self._now.serves(seen) and self._now.envoy:
            state, message = server_pb2.REPLICA_STATE_READY, history.summary
        elif seen.engine.phase is Phase.READY:
            message = "Envoy has not acknowledged it yet"
        entry = Replica(
            index=seen.engine.replica,
            state=state,
            instance=seen.engine.process,
            restarts=history.restarts,
            message=message,
        )
        entry.start_time.FromDatetime(seen.engine.start_time)
        return entry

    @property
    def _no_room(self) -> NoRoom | None:
        return next((verdict for verdict in self._now.waiting.values() if isinstance(verdict, NoRoom)), None)

    @property
    def _failing(self) -> bool:
        return self._worst is not None and self._worst.failing


def _condition(kind: str, verdict: _Verdict, before: Condition | None, generation: int, now: datetime) -> Condition:
    condition = Condition(
        type=kind,
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message,
        observed_generation=generation,
    )
    if before is not None and before.status == verdict.status:
        condition.last_transition_time.CopyFrom(before.last_transition_time)
    else:
        condition.last_transition_time.FromDatetime(now)
    return condition
