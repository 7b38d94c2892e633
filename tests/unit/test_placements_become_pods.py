"""A placement becomes exactly the fields of a pod that it names; without one nothing is chosen for the cluster."""

from __future__ import annotations

from controller.kubernetes.pod_template import PodSettings, pod_template
from controller.kubernetes.workload import WorkloadOwner, disruption_budget, why_no_pods
from controller.launch import spec_hash
from controller.runtimes import LaunchSpec
from llamesh.kit.config import Settings
from llamesh.kit.kubernetes_api import Object
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Gpus, Placement, ServerSpec, Toleration

LABELS = {"llamesh.dev/server": "u"}
SPREAD = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": LABELS},
}
CHOOSING = (
    "nodeSelector",
    "tolerations",
    "priorityClassName",
    "topologySpreadConstraints",
    "affinity",
    "runtimeClassName",
)
MIB = 1 << 20


def pod(placement: Placement, memory_bytes: int = 0) -> Object:
    spec = LaunchSpec("u", 0, "h", "/m.gguf", "m", 4, placement=placement)
    found: Object = pod_template(LABELS, spec, PodSettings("engine:1", 20, "store", "", 0), memory_bytes)["spec"]
    return found


def chosen(placement: Placement) -> Object:
    return {name: value for name, value in pod(placement).items() if name in CHOOSING}


def test_without_a_placement_pods_only_spread_over_nodes() -> None:
    assert chosen(Placement()) == {"topologySpreadConstraints": [SPREAD]}
    (engine,), (fetcher,) = pod(Placement())["containers"], pod(Placement())["initContainers"]
    assert engine["image"] == fetcher["image"] == "engine:1"
    assert engine["resources"] == {}


def test_nodes_taints_and_priority_become_fields_of_the_pod() -> None:
    placement = Placement(
        node_selector={"zone": "a"},
        priority_class="batch",
        tolerations=[
            Toleration(key="a", operator=server_pb2.TOLERATION_OPERATOR_EXISTS),
            Toleration(key="b", value="x", effect=server_pb2.TAINT_EFFECT_PREFER_NO_SCHEDULE),
            Toleration(key="c", effect=server_pb2.TAINT_EFFECT_NO_EXECUTE, toleration_seconds=0),
        ],
    )
    assert chosen(placement) == {
        "topologySpreadConstraints": [SPREAD],
        "nodeSelector": {"zone": "a"},
        "priorityClassName": "batch",
        "tolerations": [
            {"key": "a", "operator": "Exists"},
            {"key": "b", "operator": "Equal", "value": "x", "effect": "PreferNoSchedule"},
            {"key": "c", "operator": "Equal", "value": "", "effect": "NoExecute", "tolerationSeconds": 0},
        ],
    }


def test_gpus_are_limits_of_the_engine_beside_its_memory() -> None:
    (engine,) = pod(Placement(gpus=Gpus(count=2)), 400 * MIB)["containers"]
    assert engine["resources"] == {
        "requests": {"memory": str(400 * MIB)},
        "limits": {"memory": str(756 * MIB), "nvidia.com/gpu": "2"},
    }
    (engine,) = pod(Placement(gpus=Gpus(count=1, resource="amd.com/gpu")))["containers"]
    assert engine["resources"] == {"limits": {"amd.com/gpu": "1"}}


def test_the_container_with_the_keys_of_the_store_never_runs_the_image_of_a_server() -> None:
    made = pod(Placement(image="cuda:12"))
    assert [each["image"] for each in made["containers"]] == ["cuda:12"]
    assert [each["image"] for each in made["initContainers"] if "envFrom" in each] == ["engine:1"]


def test_a_changed_placement_replaces_engines_and_an_empty_one_does_not() -> None:
    settings = Settings()
    plain = ServerSpec(model_uuid="m")
    empty = ServerSpec(model_uuid="m", placement=Placement())
    placed = ServerSpec(model_uuid="m", placement=Placement(image="cuda:12"))
    assert spec_hash(plain, settings) == spec_hash(empty, settings) != spec_hash(placed, settings)


def test_a_disruption_budget_belongs_to_its_server() -> None:
    made = disruption_budget(WorkloadOwner("default", "chat", "0f0c6a0e-1"))
    assert made["spec"]["maxUnavailable"] == 1
    assert made["spec"]["selector"]["matchLabels"]["llamesh.dev/server"] == "0f0c6a0e-1"
    assert [each["uid"] for each in made["metadata"]["ownerReferences"]] == ["0f0c6a0e-1"]


def test_a_deployment_whose_pods_cannot_be_made_says_why() -> None:
    failed = {"type": "ReplicaFailure", "status": "True", "message": "no PriorityClass with name batch was found"}
    assert (
        why_no_pods({"status": {"conditions": [{"type": "Available", "status": "True"}, failed]}}) == failed["message"]
    )
    assert why_no_pods({"status": {"conditions": [{**failed, "status": "False"}]}}) == ""
    assert why_no_pods({}) == ""
