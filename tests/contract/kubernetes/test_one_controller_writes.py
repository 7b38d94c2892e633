"""Of several controllers of a cluster one writes; all observe. Against a stand-in of the cluster."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.kubernetes import leadership
from llamesh.kit.config import Settings
from tests.contract.kubernetes.world import FakeContract, InCluster, in_cluster
from tests.contract.patience import until
from tests.kubernetes_cluster import StandIn


@pytest.fixture(autouse=True)
def quick_elections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.05)


@pytest.fixture
async def second(
    world: InCluster,
    cluster: StandIn,
    contract: FakeContract,
    in_cluster_settings: Settings,
    connect: Any,
    start_member: Any,
) -> AsyncIterator[InCluster]:
    await until(lambda: leads(world))
    # A controller on another machine: it has a socket of its own.
    async with in_cluster(cluster, in_cluster_settings, connect, start_member, "gateway") as running:
        yield running


def leads(world: InCluster) -> bool:
    return world.place._leadership.leads


async def test_every_controller_observes_and_one_writes(world: InCluster, second: InCluster) -> None:
    world.apply()
    await until(lambda: world.deployment())
    world.cluster.settle()
    world.answers()
    await until(lambda: world.condition("Ready").get("status") == "True")
    # The Envoys of both get the endpoints.
    await until(lambda: second.endpoints() == world.endpoints() == ("10.0.0.1:8080",))
    assert leads(world)
    assert not leads(second)
    assert len(world.cluster.of("leases")) == 1


async def test_another_controller_leads_at_once_when_the_leader_leaves(world: InCluster, second: InCluster) -> None:
    await world.place.close()
    await until(lambda: leads(second))
    second.apply()
    await until(lambda: second.deployment())
    second.cluster.settle()
    second.answers()
    await until(lambda: second.condition("Ready").get("status") == "True")


async def test_a_leader_that_is_cut_off_stops_before_another_leads(
    cluster: StandIn, world: InCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: leads(world))
    now = [time.monotonic()]
    monkeypatch.setattr(world.place._leadership, "_clock", lambda: now[0])
    await until(lambda: leads(world))
    cluster.fault = (503, "cut off")
    now[0] += leadership.LEASE_SECONDS - leadership._MARGIN_SECONDS
    assert not leads(world)
    cluster.fault = None
    await until(lambda: leads(world))


async def test_a_lease_that_nobody_renews_is_taken_after_its_whole_length(
    cluster: StandIn, world: InCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: leads(world))
    now = [time.monotonic()]
    monkeypatch.setattr(world.place._leadership, "_clock", lambda: now[0])
    path = next(path for path in cluster.objects if "/leases/" in path)
    lease = cluster.objects[path]
    cluster.put(path, {**lease, "spec": {**lease["spec"], "holderIdentity": "another"}})
    await until(lambda: world.place._leadership._seen[1] == now[0])
    now[0] += leadership.LEASE_SECONDS - 0.1
    assert not leads(world)
    now[0] += 0.2
    await until(lambda: leads(world))


async def test_changes_of_readiness_are_events(world: InCluster) -> None:
    world.apply()
    await until(lambda: world.deployment())
    world.cluster.settle()
    world.answers()
    await until(lambda: [each["reason"] for each in world.cluster.of("events")][-1:] == ["AllReady"])
    last = world.cluster.of("events")[-1]
    assert last["type"] == "Normal"
    assert last["regarding"]["uid"] == world.object()["metadata"]["uid"]
