"""An informer has the objects of a path, through every way in which a watch ends. Against a stand-in of the API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.kubernetes.informer import Informer
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi
from tests.contract.patience import until
from tests.kubernetes_cluster import StandIn

PODS = "/api/v1/namespaces/default/pods"


class Followed:
    def __init__(self, informer: Informer, changes: list[str], failures: list[Exception]) -> None:
        self.informer, self.changes, self.failures = informer, changes, failures

    def names(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.informer.objects.values()}


@pytest.fixture
async def followed(api: KubernetesApi) -> AsyncIterator[Followed]:
    changes: list[str] = []
    failures: list[Exception] = []
    informer = Informer(
        api, PODS, lambda item: changes.append(item["metadata"]["name"]), lambda _, error: failures.append(error), "a=b"
    )
    informer.start()
    yield Followed(informer, changes, failures)
    await informer.close()


def pod(cluster: StandIn, name: str, **labels: str) -> dict[str, Any]:
    return cluster.put(f"{PODS}/{name}", {"metadata": {"labels": labels or {"a": "b"}}, "spec": {}})


async def test_objects_come_change_and_go(cluster: StandIn, followed: Followed) -> None:
    pod(cluster, "first")
    await until(lambda: followed.names() == {"first"})
    pod(cluster, "second")
    pod(cluster, "other", a="c")
    cluster.put(f"{PODS}/first", {"metadata": {"labels": {"a": "b"}}, "spec": {"x": 1}})
    await until(lambda: followed.names() == {"first", "second"} and followed.changes.count("first") == 2)
    cluster.remove(f"{PODS}/first")
    await until(lambda: followed.names() == {"second"})
    assert "other" not in followed.changes
    assert not followed.failures


@pytest.mark.parametrize("forget", [False, True])
async def test_changes_between_two_watches_are_not_lost(cluster: StandIn, followed: Followed, forget: bool) -> None:
    for name in ("stays", "goes"):
        pod(cluster, name)
    await until(lambda: followed.names() == {"stays", "goes"})
    cluster.fault = (503, "starting")
    cluster.cut_watches()
    await until(lambda: bool(followed.failures))
    cluster.remove(f"{PODS}/goes")
    pod(cluster, "comes")
    if forget:
        cluster.cut_watches(forget=True)
    cluster.fault = None
    await until(lambda: followed.names() == {"stays", "comes"})
    assert followed.changes.count("stays") == 1


async def test_an_object_that_has_gone_does_not_come_back_with_a_late_answer(
    cluster: StandIn, followed: Followed
) -> None:
    late = pod(cluster, "first")
    await until(lambda: followed.names() == {"first"})
    cluster.remove(f"{PODS}/first")
    await until(lambda: not followed.names())
    followed.informer.take(late)
    assert not followed.names()


async def test_an_older_answer_does_not_replace_a_newer_object(cluster: StandIn, followed: Followed) -> None:
    old = pod(cluster, "first")
    new = cluster.put(f"{PODS}/first", {"metadata": {"labels": {"a": "b"}}, "spec": {"x": 1}})
    await until(lambda: new in followed.informer.objects.values())
    followed.informer.take(old)
    assert new in followed.informer.objects.values()


async def test_a_cluster_that_refuses_is_reported_and_asked_again(cluster: StandIn, api: KubernetesApi) -> None:
    cluster.fault = (403, 'pods is forbidden: User "x" cannot list')
    with pytest.raises(ClusterError, match="cannot list") as raised:
        await api.all(PODS)
    assert raised.value.may_pass


async def test_what_a_watch_has_not_brought_yet_is_read_on_request(cluster: StandIn, followed: Followed) -> None:
    pod(cluster, "goes")
    await until(lambda: followed.names() == {"goes"})
    await followed.informer.close()
    cluster.remove(f"{PODS}/goes")
    pod(cluster, "comes")
    assert followed.names() == {"goes"}
    await followed.informer.catch_up()
    assert followed.names() == {"comes"}
    cluster.fault = (503, "starting")
    with pytest.raises(ClusterError):
        await followed.informer.catch_up()
