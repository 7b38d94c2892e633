"""Builds the status of a server from its desired and observed state: state, conditions with reasons, replicas. No I/O.

Invariant: the same input gives the same text, and only a condition whose status changed gets a new transition time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.declared import DeclaredServer, RunState
from controller.model_files import Availability, ModelFile
from controller.plan import Desired, ObservedState
from controller.replica_status import replica_entries
from controller.runtimes import EnginePhase, Liveness
from controller.starts import NotEnoughMemory
from controller.status_reading import CONDITION_TRUE
from llamesh.runtime_parameters import flags
from llamesh.server_conditions import BEING_REMOVED
from llamesh.sizes import size
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Condition, Server

_TRUE = CONDITION_TRUE
_FALSE = server_pb2.CONDITION_STATUS_FALSE
_UNKNOWN = server_pb2.CONDITION_STATUS_UNKNOWN
_OUT_OF_MEMORY = "OutOfMemory"
_NO_MODEL = {
    Availability.MISSING: "ModelNotFound",
    Availability.CORRUPT: "ModelCorrupt",
    Availability.UNREACHABLE: "ModelUnreachable",
}
"""Reason of the Ready condition for each availability of the model's file."""
_DOUBTS = {
    Liveness.SUSPECT: "InferenceSilent",
    Liveness.LOST: "EngineUnreachable",
    Liveness.STUCK: "InferenceStuck",
}
"""Reason of the Ready condition for each liveness of an engine that is not alive."""
_SAME_MOMENT_MS = 500


@dataclass(frozen=True, slots=True)
class MemoryRequirement:
    """Memory that one more engine needs, and memory that is free."""

    needed_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class _ConditionValue:
    status: server_pb2.ConditionStatus.ValueType
    reason: str
    message: str


def build_status(
    declared: DeclaredServer,
    desired: Desired,
    state: ObservedState,
    model: ModelFile,
    memory: MemoryRequirement | None,
    endpoint: str,
    previous: Server | None,
    observed_generation: int,
    now: datetime,
) -> Server:
    """Build the whole status of a server."""
    view = _StatusBuilder(desired, state, model)
    server = Server(
        server_uuid=declared.server_uuid,
        model_uuid=declared.spec.model_uuid,
        model_name=declared.spec.model_name,
        state=view.state(),
        endpoint=endpoint,
        replicas=declared.replicas,
        ready_replicas=view.serving if state.envoy_connected else 0,
        runtime_params=flags(declared.spec.parameters),
        spec=declared.spec,
        replica_statuses=replica_entries(desired, state, view.running, view.doubtful),
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


def _set_next_start(server: Server, seconds: float | None, previous: Server | None, now: datetime) -> None:
    """Set the time of the next start. Keep the previous value if it differs only by the clock's resolution."""
    if seconds is None:
        return
    server.next_start_time.FromDatetime(now + timedelta(seconds=seconds))
    if previous is not None and previous.HasField("next_start_time"):
        apart = previous.next_start_time.ToMilliseconds() - server.next_start_time.ToMilliseconds()
        if abs(apart) < _SAME_MOMENT_MS:
            server.next_start_time.CopyFrom(previous.next_start_time)


class _StatusBuilder:
    def __init__(self, desired: Desired, state: ObservedState, model: ModelFile) -> None:
        self._desired = desired
        self._state = state
        self._model = model
        self.running = [observed for observed in state.engines if observed.engine.phase is not EnginePhase.ENDED]
        serving = [observed for observed in self.running if state.serves(observed)]
        self.serving = len(
            {observed.engine.replica for observed in serving if observed.engine.replica < desired.engine_count}
        )
        self._replacing = any(observed.engine.spec_hash != desired.spec_hash for observed in serving)
        restart_histories = [state.restart_history(replica) for replica in range(desired.engine_count)]
        self._worst = max(restart_histories, key=lambda history: history.failures, default=None)
        self.doubtful = [
            observed
            for observed in self.running
            if observed.engine.phase is EnginePhase.READY and observed.engine.liveness is not Liveness.ALIVE
        ]

    def state(self) -> server_pb2.ServerState.ValueType:
        """Return the state of the server."""
        if self._desired.removing:
            return server_pb2.SERVER_STATE_STOPPING
        if not self._desired.engine_count:
            return server_pb2.SERVER_STATE_STOPPING if self.running else server_pb2.SERVER_STATE_SLEEPING
        if self.serving and not self._state.envoy_connected:
            return server_pb2.SERVER_STATE_STARTING
        if self.serving == self._desired.engine_count and not self._failing:
            return server_pb2.SERVER_STATE_READY
        if self.serving or self.doubtful:
            return server_pb2.SERVER_STATE_DEGRADED
        if self._failing or self._model.availability in (Availability.MISSING, Availability.CORRUPT):
            return server_pb2.SERVER_STATE_FAILING
        return server_pb2.SERVER_STATE_STARTING

    def next_start_in(self) -> float | None:
        """Return the seconds until a failed engine may be restarted; None if none failed, or one is starting or answers."""
        if (
            any(observed.engine.phase in (EnginePhase.STARTING, EnginePhase.READY) for observed in self.running)
            or not self._worst
        ):
            return None
        if not self._worst.failures:
            return None
        moments = [self._state.restart_history(replica).not_before for replica in range(self._desired.engine_count)]
        return max(0.0, min(moments) - self._state.now)

    def ready(self) -> _ConditionValue:
        """Return the condition Ready: every desired engine answers."""
        wanted = self._desired.engine_count
        if self._desired.removing:
            return _ConditionValue(_FALSE, BEING_REMOVED, "the server is being stopped")
        if not wanted:
            why = (
                "a caller requested it"
                if self._desired.run_state is RunState.ASLEEP_REQUESTED
                else "no request arrived"
            )
            return _ConditionValue(_FALSE, "Asleep", f"asleep, because {why}; the next request wakes it")
        if self.serving and not self._state.envoy_connected:
            return _ConditionValue(
                _UNKNOWN, "EnvoyNotConnected", "engines answer, but no connected Envoy has acknowledged them"
            )
        if self.serving == wanted and not self._failing:
            return _ConditionValue(_TRUE, "AllReady", f"{wanted} of {wanted} engines answer")
        so_far = f"{self.serving} of {wanted} engines answer"
        if self._model.availability in _NO_MODEL:
            return _ConditionValue(_FALSE, _NO_MODEL[self._model.availability], f"{so_far}: {self._model.message}")
        if self.doubtful:
            engine = min((observed.engine for observed in self.doubtful), key=lambda engine: engine.replica)
            return _ConditionValue(
                _FALSE, _DOUBTS[engine.liveness], f"{so_far}; replica {engine.replica}: {engine.liveness_message}"
            )
        if self._no_room:
            return _ConditionValue(_FALSE, "WaitsForMemory", f"{so_far}: {self._no_room}")
        if self._worst and self._worst.failures:
            return _ConditionValue(_FALSE, self._worst.reason, f"{so_far}: {self._worst.message}")
        if self._state.pending_starts:
            return _ConditionValue(
                _FALSE, "WaitsForOtherStarts", f"{so_far}: {next(iter(self._state.pending_starts.values()))}"
            )
        return _ConditionValue(_FALSE, "Starting", so_far)

    def progressing(self) -> _ConditionValue:
        """Return the condition Progressing: a change is under way."""
        if self._desired.removing or not self._desired.engine_count:
            if self.running:
                return _ConditionValue(_TRUE, "Draining", "running requests are being finished")
            return _ConditionValue(_FALSE, "Stable", "no engine runs, as desired")
        if self._no_room:
            # Clients see the reason of Ready too, and must not learn about other servers from it.
            return _ConditionValue(_FALSE, "WaitsForMemory", self._no_room.explained)
        if self._failing:
            return _ConditionValue(_FALSE, "BackingOff", "engines are restarted with exponential backoff")
        if self._replacing:
            return _ConditionValue(_TRUE, "Replacing", "engines are replaced one after the other")
        if self._state.pending_starts:
            return _ConditionValue(
                _TRUE, "WaitsForOtherStarts", f"an engine {next(iter(self._state.pending_starts.values()))}"
            )
        if self.serving < self._desired.engine_count:
            return _ConditionValue(_TRUE, "Starting", "engines are being started")
        return _ConditionValue(_FALSE, "Stable", "the observed state is the desired state")

    def model_available(self) -> _ConditionValue:
        """Return the condition ModelAvailable: the model's file exists."""
        availability = self._model.availability
        if availability is Availability.AVAILABLE or (availability is Availability.UNKNOWN and self.running):
            return _ConditionValue(_TRUE, "Located", "the model's file is on this machine")
        if availability in (Availability.MISSING, Availability.CORRUPT):
            return _ConditionValue(_FALSE, _NO_MODEL[availability], self._model.message)
        if availability is Availability.UNREACHABLE:
            return _ConditionValue(_UNKNOWN, "ModelUnreachable", self._model.message)
        if availability is Availability.LOCATING:
            return _ConditionValue(
                _UNKNOWN, "Locating", self._model.message or "the model's file is being copied to this machine"
            )
        return _ConditionValue(_UNKNOWN, "NotAsked", "no engine has needed the model's file yet")

    def fits_memory(self, memory: MemoryRequirement | None) -> _ConditionValue:
        """Return the condition FitsMemory: one more engine has room."""
        if self._worst and self._worst.failures and self._worst.reason == _OUT_OF_MEMORY:
            return _ConditionValue(_FALSE, _OUT_OF_MEMORY, self._worst.message)
        if self.serving and self.serving == self._desired.engine_count:
            return _ConditionValue(_TRUE, "Running", "the engines are in memory")
        if self._no_room:
            return _ConditionValue(_FALSE, "NotEnoughMemory", str(self._no_room))
        if memory is None:
            return _ConditionValue(_UNKNOWN, "NotEstimated", "the memory that an engine needs is unknown")
        numbers = f"an engine needs about {size(memory.needed_bytes)}, {size(memory.free_bytes)} are free"
        if memory.needed_bytes > memory.free_bytes:
            return _ConditionValue(_FALSE, "NotEnoughMemory", numbers)
        return _ConditionValue(_TRUE, "Estimated", numbers)

    def routable(self) -> _ConditionValue:
        """Return the condition Routable: Envoy routes requests for the server's id and name."""
        if self._state.routable:
            return _ConditionValue(_TRUE, "Acknowledged", "Envoy routes requests for this server")
        if not self._state.envoy_connected:
            return _ConditionValue(
                _UNKNOWN, "EnvoyNotConnected", "no connected Envoy has acknowledged the routes of this server"
            )
        return _ConditionValue(_FALSE, "NotAcknowledged", "Envoy has not yet acknowledged the routes of this server")

    @property
    def _no_room(self) -> NotEnoughMemory | None:
        return next(
            (verdict for verdict in self._state.pending_starts.values() if isinstance(verdict, NotEnoughMemory)), None
        )

    @property
    def _failing(self) -> bool:
        return self._worst is not None and self._worst.failing


def _condition(
    kind: str, verdict: _ConditionValue, before: Condition | None, generation: int, now: datetime
) -> Condition:
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
