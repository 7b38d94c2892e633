"""Builds the replicas in a server's status. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from controller.observed import Desired, ObservedEngine, ObservedState
from controller.runtimes import EnginePhase
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Replica


def replica_entries(
    desired: Desired,
    state: ObservedState,
    running: Sequence[ObservedEngine],
    doubtful: Sequence[ObservedEngine],
) -> Sequence[Replica]:
    """Return one entry for each running engine and one for each replica that waits for its next start."""
    entries = [
        _entry(state, observed, observed in doubtful)
        for observed in sorted(running, key=lambda observed: observed.engine.replica)
    ]
    present = {entry.index for entry in entries}
    for index in range(desired.engine_count):
        history = state.restart_history(index)
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


def _entry(state: ObservedState, observed: ObservedEngine, is_doubtful: bool) -> Replica:
    history = state.restart_history(observed.engine.replica)
    draining = observed.engine.phase is EnginePhase.STOPPING or observed.draining_since is not None
    replica_state, message = server_pb2.REPLICA_STATE_STARTING, "the model is being loaded"
    if draining:
        replica_state, message = server_pb2.REPLICA_STATE_DRAINING, "running requests are being finished"
    elif is_doubtful:
        replica_state, message = server_pb2.REPLICA_STATE_UNHEALTHY, observed.engine.liveness_message
    elif state.serves(observed) and state.envoy_connected:
        replica_state, message = server_pb2.REPLICA_STATE_READY, history.summary
    elif observed.engine.phase is EnginePhase.READY:
        message = "Envoy has not acknowledged it yet"
    elif observed.engine.problem:
        message = observed.engine.problem
    entry = Replica(
        index=observed.engine.replica,
        state=replica_state,
        instance=observed.engine.process,
        restarts=history.restarts + observed.engine.restarts,
        message=message,
    )
    entry.start_time.FromDatetime(observed.engine.start_time)
    return entry
