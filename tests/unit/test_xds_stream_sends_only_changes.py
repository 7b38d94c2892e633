"""One Envoy's delta stream, without Envoy: order, versions, refusals, reconnects."""

from __future__ import annotations

from typing import Any

import pytest

from controller.xds import clusters
from controller.xds.clusters import ServerEndpoints
from controller.xds.snapshot import CDS, EDS, LDS, RDS, Snapshot
from controller.xds.stream import DeltaStream
from llamesh.kit import envoy_api

REQUEST = envoy_api.message_class("envoy.service.discovery.v3.DeltaDiscoveryRequest")


def cluster(name: str, max_connections: int = 4) -> Any:
    return clusters.server_cluster(name, max_connections)


def ready(name: str, *at: str) -> Any:
    return clusters.endpoints(name, [ServerEndpoints("u", (), at, 4)])


class Envoy:
    """The other end: asks, and takes or refuses what comes."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.stream = DeltaStream(snapshot)

    def ask(self, type_url: str, *names: str, known: dict[str, str] | None = None, drop: tuple[str, ...] = ()) -> None:
        self.stream.receive(
            REQUEST(
                type_url=type_url,
                resource_names_subscribe=names,
                resource_names_unsubscribe=drop,
                initial_resource_versions=known or {},
            )
        )

    def take(self, response: Any) -> None:
        assert self.stream.receive(REQUEST(type_url=response.type_url, response_nonce=response.nonce)) is None

    def refuse(self, response: Any) -> Any:
        return self.stream.receive(
            REQUEST(
                type_url=response.type_url, response_nonce=response.nonce, error_detail={"code": 13, "message": "no"}
            )
        )

    def next(self) -> list[tuple[str, list[str], list[str]]]:
        """What comes now, all of it taken: type, names, removed names."""
        seen = []
        for response in self.responses():
            seen.append(summary(response))
            self.take(response)
        return seen

    def responses(self) -> list[Any]:
        return self.stream.responses()


def summary(response: Any) -> tuple[str, list[str], list[str]]:
    return response.type_url, [each.name for each in response.resources], list(response.removed_resources)


@pytest.fixture
def envoy() -> Envoy:
    snapshot = Snapshot()
    for name in ("s:a", "s:b"):
        snapshot.put(name, cluster(name))
        snapshot.put(name, ready(name))
    return Envoy(snapshot)


def change(envoy: Envoy, content: Any) -> bool:
    name = getattr(content, "name", "") or content.cluster_name
    changed = envoy.snapshot.put(name, content)
    if changed:
        envoy.stream.change(envoy_api.TYPE_URL + content.DESCRIPTOR.full_name, [name])
    return changed


def test_the_first_answer_is_everything_and_the_next_nothing(envoy: Envoy) -> None:
    envoy.ask(CDS)
    assert envoy.next() == [(CDS, ["s:a", "s:b"], [])]
    assert envoy.next() == []


def test_the_same_content_is_no_change(envoy: Envoy) -> None:
    assert not change(envoy, cluster("s:a"))


def test_a_type_without_resources_is_answered_once(envoy: Envoy) -> None:
    envoy.ask(LDS, "*")
    assert envoy.next() == [(LDS, [], [])]
    assert envoy.next() == []


def test_only_the_changed_resource_is_sent(envoy: Envoy) -> None:
    envoy.ask(CDS)
    envoy.ask(EDS, "s:a", "s:b")
    envoy.next()
    change(envoy, ready("s:b", "/e.sock"))
    assert envoy.next() == [(EDS, ["s:b"], [])]


def test_additions_go_out_before_removals_and_clusters_before_endpoints(envoy: Envoy) -> None:
    envoy.ask(CDS)
    envoy.ask(EDS, "s:a", "s:b", "s:c")
    envoy.next()
    envoy.snapshot.remove(CDS, "s:a")
    envoy.snapshot.remove(EDS, "s:a")
    envoy.stream.change(CDS, ["s:a"])
    envoy.stream.change(EDS, ["s:a"])
    change(envoy, ready("s:c"))
    change(envoy, cluster("s:c"))
    assert envoy.next() == [(CDS, ["s:c"], []), (EDS, ["s:c"], []), (EDS, [], ["s:a"]), (CDS, [], ["s:a"])]


def test_a_changed_cluster_gets_its_endpoints_again(envoy: Envoy) -> None:
    envoy.ask(CDS)
    envoy.ask(EDS, "s:a", "s:b")
    envoy.next()
    change(envoy, cluster("s:a", max_connections=9))
    assert envoy.next() == [(CDS, ["s:a"], []), (EDS, ["s:a"], [])]


def test_a_name_that_does_not_exist_is_answered_as_removed(envoy: Envoy) -> None:
    envoy.ask(RDS, "inference")
    assert envoy.next() == [(RDS, [], ["inference"])]


def test_asking_again_is_answered_again(envoy: Envoy) -> None:
    envoy.ask(EDS, "s:a")
    envoy.next()
    envoy.ask(EDS, drop=("s:a",))
    change(envoy, ready("s:a", "/e.sock"))
    assert envoy.next() == []
    envoy.ask(EDS, "s:a")
    envoy.ask(EDS, "s:a")
    assert envoy.next() == [(EDS, ["s:a"], [])]


def test_an_envoy_that_comes_back_is_sent_the_difference(envoy: Envoy) -> None:
    versions = {name: each.version for name, each in envoy.snapshot.of(CDS).items()}
    envoy.ask(CDS, known={"s:a": versions["s:a"], "s:b": "older", "s:gone": "any"})
    assert envoy.next() == [(CDS, ["s:b"], []), (CDS, [], ["s:gone"])]
    assert envoy.stream.has(CDS, "s:a")
    endpoints = {name: each.version for name, each in envoy.snapshot.of(EDS).items()}
    envoy.ask(EDS, "s:a", "s:b", known={"s:a": endpoints["s:a"]})
    assert envoy.next() == [(EDS, ["s:b"], [])]


def test_nothing_is_acknowledged_until_envoy_says_so(envoy: Envoy) -> None:
    envoy.ask(EDS, "s:a")
    (response,) = envoy.responses()
    assert not envoy.stream.has(EDS, "s:a")
    change(envoy, ready("s:a", "/e.sock"))
    envoy.take(response)
    assert not envoy.stream.has(EDS, "s:a"), "an older version was acknowledged"
    envoy.next()
    assert envoy.stream.has(EDS, "s:a")


def test_a_refused_resource_is_kept_back_until_it_changes_and_holds_back_no_other(envoy: Envoy) -> None:
    envoy.ask(CDS)
    (together,) = envoy.responses()
    refusal = envoy.refuse(together)
    assert (refusal.type_url, refusal.names, refusal.message) == (CDS, ("s:a", "s:b"), "no")
    bad, good = envoy.responses()
    assert [summary(bad), summary(good)] == [(CDS, ["s:a"], []), (CDS, ["s:b"], [])]
    envoy.refuse(bad)
    envoy.take(good)
    assert envoy.responses() == []
    assert (envoy.stream.has(CDS, "s:a"), envoy.stream.has(CDS, "s:b")) == (False, True)
    change(envoy, cluster("s:a", max_connections=5))
    assert envoy.next() == [(CDS, ["s:a"], [])]
    assert envoy.stream.has(CDS, "s:a")


def test_a_request_that_comes_while_responses_go_out_is_not_lost(envoy: Envoy) -> None:
    envoy.ask(CDS)
    envoy.ask(EDS, "s:a")
    answered = []
    for number, response in enumerate(envoy.responses()):
        if number == 1:
            envoy.ask(EDS, "s:b")
        answered.append(summary(response))
    assert answered == [(CDS, ["s:a", "s:b"], []), (EDS, ["s:a"], [])]
    assert envoy.next() == [(EDS, ["s:b"], [])]


def test_types_that_the_mesh_does_not_serve_are_ignored(envoy: Envoy) -> None:
    envoy.ask(envoy_api.TYPE_URL + "envoy.extensions.transport_sockets.tls.v3.Secret", "x")
    assert envoy.next() == []
