"""Which calls are repeated, and when: decided without a clock or a network."""

from __future__ import annotations

import pytest

from llamesh.client import errors
from llamesh.client.retries import MAX_TRIES, may_repeat, pause_before_next, repeatable
from llamesh.v1 import gateway_pb2

UNAVAILABLE = errors.Unavailable("gone")


def pause(
    error: errors.MeshError = UNAVAILABLE,
    tries: int = 1,
    left: float = 30.0,
    random: float = 0.5,
    *,
    safe: bool = True,
) -> float | None:
    return pause_before_next(error, tries=tries, may_repeat=safe, left=left, random=lambda: random)


def test_pauses_grow_and_are_spread() -> None:
    assert pause(tries=1) == pytest.approx(0.1)
    assert pause(tries=2) == pytest.approx(0.2)
    assert pause(tries=1, random=0.0) == pytest.approx(0.05)
    assert pause(tries=1, random=1.0) == pytest.approx(0.15)


def test_a_server_outside_the_mesh_is_not_asked_again() -> None:
    assert pause(errors.of_reason("SOURCE_UNAVAILABLE", "the Hub does not answer")) is None
    assert pause(errors.of_reason("COMPONENT_UNAVAILABLE", "the controller does not answer")) is not None


def test_it_ends_after_the_last_try() -> None:
    assert pause(tries=MAX_TRIES - 1) is not None
    assert pause(tries=MAX_TRIES) is None


def test_a_pause_that_outlasts_the_deadline_is_not_begun() -> None:
    assert pause(left=0.05) is None


@pytest.mark.parametrize("error", [errors.DoesNotFit("no"), errors.NotFound("no"), errors.Internal("no")])
def test_only_unavailable_is_tried_again(error: errors.MeshError) -> None:
    assert pause(error) is None


def test_a_call_that_is_not_safe_to_repeat_is_not_retried() -> None:
    assert pause(safe=False) is None


def test_the_answers_own_time_is_obeyed() -> None:
    told = errors.ComponentUnavailable("restarting", retry_after=3.0)
    found = pause(told)
    assert found is not None
    assert found >= 3.0
    assert pause(told, left=2.0) is None


def test_the_contract_says_which_calls_may_be_repeated() -> None:
    assert repeatable("llamesh.v1.GatewayService/ListServers")
    assert repeatable("llamesh.v1.GatewayService/SleepServer")
    assert not repeatable("llamesh.v1.GatewayService/Stop")
    serve = "llamesh.v1.GatewayService/Serve"
    assert not may_repeat(serve, gateway_pb2.ServeRequest())
    assert may_repeat(serve, gateway_pb2.ServeRequest(request_id="one"))
