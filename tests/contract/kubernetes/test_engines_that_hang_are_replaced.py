"""A pod whose inference loop makes no progress gets no requests, and is replaced. Against a stand-in of the cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.kubernetes import pod_liveness
from llamesh.kit.config import Settings
from llamesh.kit.occupancy import Counters
from tests.contract.kubernetes.world import Engines, FakeContract, InCluster, in_cluster
from tests.contract.patience import until
from tests.kubernetes_cluster import StandIn

FIRST, SECOND = "10.0.0.1:8080", "10.0.0.2:8080"
WORKING = Counters(1, 7.0, None)
"""One request, and a counter that does not move."""


@pytest.fixture
async def two(
    cluster: StandIn,
    contract: FakeContract,
    in_cluster_settings: Settings,
    connect: Any,
    start_member: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[InCluster]:
    """A server with two pods, and a controller whose patience is short."""
    monkeypatch.setattr(pod_liveness, "PROBE_SECONDS", 0.02)
    settings = in_cluster_settings.model_copy(update={"engine_stall_seconds": 1.0})
    async with in_cluster(cluster, settings, connect, start_member) as world:
        world.apply(replicas=2)
        await until(lambda: world.deployment() and world.deployment()["spec"]["replicas"] == 2)
        cluster.settle()
        for number, pod in enumerate(world.pods(), 1):
            cluster.set_pod(pod["metadata"]["name"], ip=f"10.0.0.{number}")
        await until(lambda: set(world.endpoints()) == {FIRST, SECOND})
        yield world


@pytest.mark.parametrize("answer", [None, WORKING])
async def test_an_engine_without_progress_leaves_and_is_replaced(
    two: InCluster, engines: Engines, answer: Counters | None
) -> None:
    old = next(pod["metadata"]["name"] for pod in two.pods() if pod["status"]["podIP"] == "10.0.0.1")
    engines.answers[FIRST] = answer
    await until(lambda: two.endpoints() == (SECOND,))
    await until(lambda: old not in {pod["metadata"]["name"] for pod in two.pods()})
    two.cluster.settle()
    engines.answers.clear()
    two.answers("10.0.0.3")
    await until(lambda: len(two.endpoints()) == 2)


async def test_an_engine_that_answers_again_gets_requests_again(two: InCluster, engines: Engines) -> None:
    pods = {pod["metadata"]["name"] for pod in two.pods()}
    engines.answers[FIRST] = None
    await until(lambda: two.endpoints() == (SECOND,))
    engines.answers.clear()
    await until(lambda: len(two.endpoints()) == 2)
    assert {pod["metadata"]["name"] for pod in two.pods()} == pods


async def test_a_controller_that_reaches_no_engine_takes_none_out(
    two: InCluster, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[int] = []
    monkeypatch.setattr(pod_liveness.log, "warning", lambda *_, engines=0, **__: said.append(engines), raising=False)
    engines.answers |= {FIRST: None, SECOND: None}
    await until(lambda: len(said) > 100)
    assert len(two.endpoints()) == 2
    assert len(two.pods()) == 2
