"""A controller's parts against a STAND-IN of a cluster; see tests/kubernetes_cluster.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.kubernetes_api import KubernetesApi
from tests.contract.kubernetes.issuing import Disturbed
from tests.contract.kubernetes.world import Engines, FakeContract, InCluster, in_cluster, start_services
from tests.kubernetes_cluster import StandIn, stand_in


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StandIn]:
    async with stand_in() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.write_kubeconfig(tmp_path / "kubeconfig")))
        yield running


@pytest.fixture
async def api(cluster: StandIn) -> AsyncIterator[KubernetesApi]:
    connected = KubernetesApi("test")
    yield connected
    await connected.close()


@pytest.fixture
async def disturbed(cluster: StandIn) -> AsyncIterator[Callable[..., Disturbed]]:
    """Makes connections of which one call is disturbed."""
    made: list[Disturbed] = []

    def make(*arguments: Any, **more: Any) -> Disturbed:
        made.append(Disturbed(*arguments, **more))
        return made[-1]

    yield make
    for api in made:
        await api.close()


@pytest.fixture(autouse=True)
def engines() -> Engines:
    """What the engines in pods answer, by address. Without an entry they answer that they are idle."""
    return Engines()


@pytest.fixture(autouse=True)
def answering_engines(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.kubernetes.pod_probe.counters", engines.counters)


@pytest.fixture
def in_cluster_settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"runtime": "kubernetes", "allowed_namespaces": ("default",)})


@pytest.fixture
async def contract(in_cluster_settings: Settings, start_member: Any, tmp_path: Path) -> FakeContract:
    return await start_services(in_cluster_settings, start_member, tmp_path / "model.gguf")


@pytest.fixture
async def world(
    cluster: StandIn, contract: FakeContract, in_cluster_settings: Settings, connect: Any, start_member: Any
) -> AsyncIterator[InCluster]:
    async with in_cluster(cluster, in_cluster_settings, connect, start_member) as running:
        yield running
