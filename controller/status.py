"""Builds the status of a server from its desired and observed state: state, conditions with reasons, replicas. No I/O.

Invariant: the same input gives the same text, and only a condition whose status changed gets a new transition time.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from controller.conditions import ConditionValue, MemoryRequirement, ServerView
from controller.declared import DeclaredServer
from controller.model_files import ModelFile
from controller.observed import Desired, ObservedState
from controller.replica_status import replica_entries
from llamesh.runtime_parameters import flags
from llamesh.v1.server_pb2 import Condition, Server

_SAME_MOMENT_MS = 500


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
    view = ServerView(desired, state, model, declared.verdict)
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
        "Available": view.available(),
        "Progressing": view.progressing(),
        "Accepted": view.accepted(),
        "ModelReady": view.model_ready(),
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


def _condition(
    kind: str, verdict: ConditionValue, before: Condition | None, generation: int, now: datetime
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
