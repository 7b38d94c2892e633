"""A placement reaches the objects of the cluster, changes replace pods one by one, and what no node or nobody allows is said in words."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1.server_pb2 import Placement, ServerChanges
from services.contract.messages import refusal_message
from services.contract.placement_policy import placement_policy, placement_refusals
from tests.contract.kubernetes.world import FakeContract, InCluster, quiet
from tests.contract.patience import until

PLACEMENT = {
    "nodeSelector": {"topology.kubernetes.io/zone": "a", "llamesh.dev/pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "gpus": {"count": 2},
    "priorityClass": "batch",
    "image": "cuda:12",
}
CHOOSING = ("nodeSelector", "tolerations", "priorityClassName")


def pod_spec(world: InCluster) -> dict[str, Any]:
    deployment = world.deployment()
    assert deployment is not None
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def chosen(world: InCluster) -> dict[str, Any]:
    return {name: value for name, value in pod_spec(world).items() if name in CHOOSING}


def budgets(world: InCluster) -> list[dict[str, Any]]:
    return world.cluster.of("poddisruptionbudgets")


async def test_a_placement_becomes_fields_of_the_pods_and_is_judged(world: InCluster, contract: FakeContract) -> None:
    world.apply(placement=PLACEMENT)
    await until(lambda: world.deployment())
    assert chosen(world) == {
        "nodeSelector": PLACEMENT["nodeSelector"],
        "tolerations": PLACEMENT["tolerations"],
        "priorityClassName": "batch",
    }
    (engine,) = pod_spec(world)["containers"]
    assert engine["image"] == "cuda:12"
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == "2"
    asked = contract.asked[0].check.placement
    assert (dict(asked.node_selector), asked.gpus.count, asked.image) == (PLACEMENT["nodeSelector"], 2, "cuda:12")


async def test_without_a_placement_nothing_is_chosen(world: InCluster, contract: FakeContract) -> None:
    world.apply()
    await until(lambda: world.deployment())
    assert chosen(world) == {}
    assert not contract.asked[0].check.HasField("placement")


async def test_a_changed_placement_replaces_pods_one_by_one(world: InCluster) -> None:
    world.apply(placement=PLACEMENT)
    await world.ready()
    (old,) = [pod["metadata"]["name"] for pod in world.pods()]
    world.apply(placement={"gpus": {"count": 1}})
    await until(lambda: chosen(world) == {})
    world.cluster.settle()
    assert len(world.pods()) == 2
    assert world.endpoints() == ("10.0.0.1:8080",)
    world.answers("10.0.0.2")
    await until(lambda: all("llamesh.dev/routed" in str(pod["status"]) for pod in world.pods()))
    world.cluster.settle()
    world.cluster.settle()
    await until(lambda: world.endpoints() == ("10.0.0.2:8080",))
    assert old not in {pod["metadata"]["name"] for pod in world.pods()}


async def test_a_change_for_a_caller_replaces_the_placement_whole(world: InCluster) -> None:
    world.apply(placement=PLACEMENT)
    await world.ready()
    uid = world.object()["metadata"]["uid"]
    for placement, written in (
        (Placement(node_selector={"llamesh.dev/pool": "cpu"}), {"nodeSelector": {"llamesh.dev/pool": "cpu"}}),
        (Placement(), None),
    ):
        changes = ServerChanges(placement=placement)
        await world.stub.UpdateDeclaredServer(pb.UpdateDeclaredServerRequest(server_uuid=uid, changes=changes))
        assert world.object()["spec"].get("placement") == written
    await until(lambda: chosen(world) == {})
    (engine,) = pod_spec(world)["containers"]
    assert engine["image"] == pod_spec(world)["initContainers"][0]["image"]


async def test_a_placement_that_is_not_allowed_is_refused_as_over_rest(
    world: InCluster, contract: FakeContract, in_cluster_settings: Settings
) -> None:
    policy = placement_policy(in_cluster_settings)
    (refusal,) = placement_refusals(policy, Placement(image="evil:1"))
    contract.refusal = refusal_message(refusal)
    world.apply(placement={"image": "evil:1"})
    await until(lambda: world.condition("Accepted").get("status") == "False")
    accepted = world.condition("Accepted")
    assert (accepted["reason"], accepted["message"]) == ("PlacementNotAllowed", refusal.message)
    assert world.deployment() is None


@pytest.mark.parametrize(
    "words",
    [
        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available.",
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
        "0/3 nodes are available: 3 node(s) had untolerated taint {dedicated: llm}.",
    ],
)
async def test_what_no_node_offers_is_said_with_the_words_of_the_scheduler(world: InCluster, words: str) -> None:
    world.apply(placement=PLACEMENT)
    await until(lambda: world.deployment())
    world.cluster.settle()
    (pod,) = world.pods()
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}"
    world.cluster.put(path, {**pod, "status": {"phase": "Pending", "conditions": [condition]}})
    await until(lambda: world.condition("Ready").get("reason") == "Unschedulable")
    assert world.condition("Ready")["message"] == f"0 of 1 engines answer: no node takes it: {words}"
    assert world.object()["status"]["state"] == "FAILING"


async def test_a_priority_class_that_does_not_exist_is_said(world: InCluster) -> None:
    world.apply(placement={"priorityClass": "batch"})
    await until(lambda: world.deployment())
    path = next(path for path in world.cluster.objects if "/deployments/" in path)
    item = copy.deepcopy(world.cluster.objects[path])
    words = "no PriorityClass with name batch was found"
    item["status"] = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": words}]}
    world.cluster.put(path, item)
    await until(lambda: world.condition("Ready").get("reason") == "RefusedByCluster")
    assert words in world.condition("Ready")["message"]


async def test_servers_of_several_engines_have_a_disruption_budget(world: InCluster) -> None:
    world.apply(replicas=2)
    await world.ready(pods=2)
    (budget,) = budgets(world)
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == world.deployment()["spec"]["selector"]
    assert budget["metadata"]["ownerReferences"][0]["uid"] == world.object()["metadata"]["uid"]
    world.apply(replicas=1)
    await until(lambda: not budgets(world))
    world.apply(replicas=3)
    await until(lambda: budgets(world))
    await quiet(world.cluster)


async def test_one_engine_has_no_disruption_budget(world: InCluster) -> None:
    world.apply()
    await world.ready()
    await quiet(world.cluster)
    assert budgets(world) == []
