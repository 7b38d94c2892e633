"""The state and the conditions of a server, each with a reason, from its desired and observed state. No I/O.

Invariant: the same input gives the same text.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.declared import RunState, Verdict
from controller.model_files import Availability, ModelFile
from controller.observed import Desired, ObservedState
from controller.runtimes import Engine, EnginePhase, Liveness
from controller.starts import NotEnoughMemory
from controller.status_reading import CONDITION_TRUE
from llamesh.server_conditions import BEING_REMOVED
from llamesh.sizes import size
from llamesh.v1 import server_pb2

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


@dataclass(frozen=True, slots=True)
class MemoryRequirement:
    """Memory that one more engine needs, and memory that is free."""

    needed_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class ConditionValue:
    """What a condition says."""

    status: server_pb2.ConditionStatus.ValueType
    reason: str
    message: str


class ServerView:
    """One server, as its status shows it."""

    def __init__(self, desired: Desired, state: ObservedState, model: ModelFile, verdict: Verdict) -> None:
        self._desired = desired
        self._state = state
        self._model = model
        self._verdict = verdict
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
        if self._failing or self._blocked or self._model.availability in (Availability.MISSING, Availability.CORRUPT):
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

    def ready(self) -> ConditionValue:
        """Return the condition Ready: every desired engine answers."""
        wanted = self._desired.engine_count
        if self._desired.removing:
            return ConditionValue(_FALSE, BEING_REMOVED, "the server is being stopped")
        if not wanted:
            why = (
                "a caller requested it"
                if self._desired.run_state is RunState.ASLEEP_REQUESTED
                else "no request arrived"
            )
            return ConditionValue(_FALSE, "Asleep", f"asleep, because {why}; the next request wakes it")
        if self.serving and not self._state.envoy_connected:
            return ConditionValue(
                _UNKNOWN, "EnvoyNotConnected", "engines answer, but no connected Envoy has acknowledged them"
            )
        if self.serving == wanted and not self._failing:
            return ConditionValue(_TRUE, "AllReady", f"{wanted} of {wanted} engines answer")
        so_far = f"{self.serving} of {wanted} engines answer"
        if not self._verdict.accepted:
            return ConditionValue(_FALSE, self._verdict.reason, f"{so_far}: {self._verdict.message}")
        if self._model.availability in _NO_MODEL:
            return ConditionValue(_FALSE, _NO_MODEL[self._model.availability], f"{so_far}: {self._model.message}")
        if self.doubtful:
            engine = min((observed.engine for observed in self.doubtful), key=lambda engine: engine.replica)
            return ConditionValue(
                _FALSE, _DOUBTS[engine.liveness], f"{so_far}; replica {engine.replica}: {engine.liveness_message}"
            )
        if self._no_room:
            return ConditionValue(_FALSE, "WaitsForMemory", f"{so_far}: {self._no_room}")
        if self._state.obstacle:
            return ConditionValue(_FALSE, "RefusedByCluster", f"{so_far}: {self._state.obstacle}")
        if self._hindered:
            return ConditionValue(_FALSE, self._hindered.problem_reason, f"{so_far}: {self._hindered.problem}")
        if self._worst and self._worst.failures:
            return ConditionValue(_FALSE, self._worst.reason, f"{so_far}: {self._worst.message}")
        if self._state.pending_starts:
            return ConditionValue(
                _FALSE, "WaitsForOtherStarts", f"{so_far}: {next(iter(self._state.pending_starts.values()))}"
            )
        return ConditionValue(_FALSE, "Starting", so_far)

    def available(self) -> ConditionValue:
        """Return the condition Available: requests are answered, by one engine at least."""
        if self.serving and self._state.envoy_connected:
            return ConditionValue(_TRUE, "Serving", "engines answer requests")
        if self.serving:
            return ConditionValue(_UNKNOWN, "EnvoyNotConnected", "no connected Envoy has acknowledged the engines")
        return ConditionValue(_FALSE, "NoEngine", "no engine answers requests")

    def accepted(self) -> ConditionValue:
        """Return the condition Accepted: the contract service allows the spec."""
        said = self._verdict
        return ConditionValue(
            (_TRUE if said.accepted else _FALSE) if said.known else _UNKNOWN, said.reason, said.message
        )

    def progressing(self) -> ConditionValue:
        """Return the condition Progressing: a change is under way."""
        if self._desired.removing or not self._desired.engine_count:
            if self.running:
                return ConditionValue(_TRUE, "Draining", "running requests are being finished")
            return ConditionValue(_FALSE, "Stable", "no engine runs, as desired")
        if self._no_room:
            # Clients see the reason of Ready too, and must not learn about other servers from it.
            return ConditionValue(_FALSE, "WaitsForMemory", self._no_room.explained)
        if self._failing:
            return ConditionValue(_FALSE, "BackingOff", "engines are restarted with exponential backoff")
        if self._replacing:
            return ConditionValue(_TRUE, "Replacing", "engines are replaced one after the other")
        if self._state.pending_starts:
            return ConditionValue(
                _TRUE, "WaitsForOtherStarts", f"an engine {next(iter(self._state.pending_starts.values()))}"
            )
        if self.serving < self._desired.engine_count:
            return ConditionValue(_TRUE, "Starting", "engines are being started")
        return ConditionValue(_FALSE, "Stable", "the observed state is the desired state")

    def model_ready(self) -> ConditionValue:
        """Return the condition ModelReady: the model's file exists."""
        availability = self._model.availability
        if availability is Availability.AVAILABLE or (availability is Availability.UNKNOWN and self.running):
            return ConditionValue(_TRUE, "Located", "engines can read the model's file")
        if availability in (Availability.MISSING, Availability.CORRUPT):
            return ConditionValue(_FALSE, _NO_MODEL[availability], self._model.message)
        if availability is Availability.UNREACHABLE:
            return ConditionValue(_UNKNOWN, "ModelUnreachable", self._model.message)
        if availability is Availability.LOCATING:
            return ConditionValue(
                _UNKNOWN, "Locating", self._model.message or "the model's file is being brought to where engines run"
            )
        return ConditionValue(_UNKNOWN, "NotAsked", "no engine has needed the model's file yet")

    def fits_memory(self, memory: MemoryRequirement | None) -> ConditionValue:
        """Return the condition FitsMemory: one more engine has room."""
        if self._worst and self._worst.failures and self._worst.reason == _OUT_OF_MEMORY:
            return ConditionValue(_FALSE, _OUT_OF_MEMORY, self._worst.message)
        if self.serving and self.serving == self._desired.engine_count:
            return ConditionValue(_TRUE, "Running", "the engines are in memory")
        if self._no_room:
            return ConditionValue(_FALSE, "NotEnoughMemory", str(self._no_room))
        if memory is None:
            return ConditionValue(_UNKNOWN, "NotEstimated", "the memory that an engine needs is unknown")
        numbers = f"an engine needs about {size(memory.needed_bytes)}, {size(memory.free_bytes)} are free"
        if memory.needed_bytes > memory.free_bytes:
            return ConditionValue(_FALSE, "NotEnoughMemory", numbers)
        return ConditionValue(_TRUE, "Estimated", numbers)

    def routable(self) -> ConditionValue:
        """Return the condition Routable: Envoy routes requests for the server's id and name."""
        if self._state.routable:
            return ConditionValue(_TRUE, "Acknowledged", "Envoy routes requests for this server")
        if not self._state.envoy_connected:
            return ConditionValue(
                _UNKNOWN, "EnvoyNotConnected", "no connected Envoy has acknowledged the routes of this server"
            )
        return ConditionValue(_FALSE, "NotAcknowledged", "Envoy has not yet acknowledged the routes of this server")

    @property
    def _no_room(self) -> NotEnoughMemory | None:
        return next(
            (verdict for verdict in self._state.pending_starts.values() if isinstance(verdict, NotEnoughMemory)), None
        )

    @property
    def _hindered(self) -> Engine | None:
        """The first engine that should start and does not."""
        return next((observed.engine for observed in self.running if observed.engine.problem), None)

    @property
    def _blocked(self) -> bool:
        """Whether nothing will start by itself: the spec is refused, or the cluster cannot run the engine."""
        refused = self._verdict.known and not self._verdict.accepted
        return refused or bool(self._state.obstacle) or self._hindered is not None

    @property
    def _failing(self) -> bool:
        return self._worst is not None and self._worst.failing
