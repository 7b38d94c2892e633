"""An engine whose liveness probe fails is shown as unhealthy, one that is drained as draining, and the server as degraded for both."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from controller.declared import DeclaredServer, RunState
from controller.model_files import Availability, ModelFile
from controller.observed import Desired, ObservedEngine, ObservedState
from controller.runtimes import Liveness
from controller.status import build_status
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server, ServerSpec
from tests.unit.planned import NEW, NOW, ONE, TWO, doubted, draining, ready, starting

TIME = datetime(2026, 11, 24, tzinfo=UTC)
DEGRADED = server_pb2.SERVER_STATE_DEGRADED
DRAINING, UNHEALTHY = server_pb2.REPLICA_STATE_DRAINING, server_pb2.REPLICA_STATE_UNHEALTHY
READY, STARTING = server_pb2.REPLICA_STATE_READY, server_pb2.REPLICA_STATE_STARTING
WORDS = "its inference loop does not answer"


def status(desired: Desired, *engines: ObservedEngine) -> Server:
    declared = DeclaredServer(
        server_uuid="s",
        spec=ServerSpec(model_uuid="m", model_name="smol"),
        generation=1,
        owner="ada",
        requester="",
        request_id="",
        request_digest="",
        engine_memory_bytes=0,
        shared_weights_bytes=0,
        run_state=RunState.AWAKE,
        removing=False,
        create_time=TIME,
        update_time=TIME,
    )
    model = ModelFile(Availability.AVAILABLE)
    return build_status(declared, desired, ObservedState(engines, NOW), model, None, "", None, 1, TIME)


def says(observed: ObservedEngine, words: str) -> ObservedEngine:
    return replace(observed, engine=replace(observed.engine, liveness_message=words))


@pytest.mark.parametrize("liveness", [Liveness.SUSPECT, Liveness.LOST, Liveness.STUCK])
def test_the_only_engine_is_unhealthy(liveness: Liveness) -> None:
    found = status(ONE, says(doubted("a", liveness), WORDS))
    (entry,) = found.replica_statuses
    assert (entry.state, entry.message) == (UNHEALTHY, WORDS)
    assert (found.state, found.ready_replicas) == (DEGRADED, 0)


def test_one_of_two_engines_is_unhealthy() -> None:
    found = status(TWO, doubted("a", Liveness.SUSPECT), ready("b", 1))
    assert [entry.state for entry in found.replica_statuses] == [UNHEALTHY, READY]
    assert (found.state, found.ready_replicas) == (DEGRADED, 1)


def test_an_unhealthy_engine_that_is_drained_is_draining() -> None:
    found = status(ONE, doubted("a", Liveness.LOST, draining_since=NOW), starting("b"))
    assert sorted(entry.state for entry in found.replica_statuses) == [STARTING, DRAINING]


def test_a_healthy_engine_that_is_drained_is_draining() -> None:
    found = status(ONE, draining("a"), ready("b", spec_hash=NEW))
    assert sorted(entry.state for entry in found.replica_statuses) == [READY, DRAINING]
