"""A server may name what the settings allow, and a refusal says the field, the value, the setting and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llamesh.kit.config_kubernetes import KubernetesSettings
from llamesh.v1.server_pb2 import Gpus, Placement, Toleration
from services.contract.placement_policy import CONTROL_PLANE_TAINTS, placement_policy, placement_refusals


def settings(**more: Any) -> KubernetesSettings:
    return KubernetesSettings(**{"LLAMESH_RUNTIME": "kubernetes", "LLAMESH_ENGINE_IMAGE": "engine:1", **more})


def tolerating(key: str) -> Placement:
    return Placement(tolerations=[Toleration(key=key)])


ALLOWED = [
    ({}, Placement()),
    ({}, Placement(image="engine:1")),
    ({"LLAMESH_ENGINE_IMAGES": "engine:2,reg.example/llm/*,cuda:*"}, Placement(image="engine:2")),
    ({"LLAMESH_ENGINE_IMAGES": "engine:2,reg.example/llm/*,cuda:*"}, Placement(image="reg.example/llm/a/b:1")),
    ({"LLAMESH_ENGINE_IMAGES": "engine:2,reg.example/llm/*,cuda:*"}, Placement(image="cuda:12")),
    ({}, Placement(gpus=Gpus(count=1))),
    ({}, Placement(gpus=Gpus(count=1, resource="amd.com/gpu"))),
    ({"LLAMESH_PRIORITY_CLASSES": "batch,models.low"}, Placement(priority_class="models.low")),
    ({}, Placement(node_selector={"topology.kubernetes.io/zone": "a", "llamesh.dev/pool": "x"})),
    ({}, tolerating("llamesh.dev/only")),
    ({}, tolerating("nvidia.com/gpu")),
]
REFUSED = [
    ({}, Placement(image="engine:2"), "image", "engine:2", "LLAMESH_ENGINE_IMAGES", "engine:1"),
    (
        {"LLAMESH_ENGINE_IMAGES": "engine:2"},
        Placement(image="engine:20"),
        "image",
        "engine:20",
        "LLAMESH_ENGINE_IMAGES",
        "engine:1,engine:2",
    ),
    (
        {"LLAMESH_ENGINE_IMAGES": "reg.example/llm/*"},
        Placement(image="reg.example/llmx/a"),
        "image",
        "reg.example/llmx/a",
        "LLAMESH_ENGINE_IMAGES",
        "engine:1,reg.example/llm/*",
    ),
    # A registry at the host "engine" and the port 5000.
    (
        {"LLAMESH_ENGINE_IMAGES": "engine:*"},
        Placement(image="engine:5000/evil"),
        "image",
        "engine:5000/evil",
        "LLAMESH_ENGINE_IMAGES",
        "engine:1,engine:*",
    ),
    (
        {"LLAMESH_GPU_RESOURCES": "intel.com/gpu"},
        Placement(gpus=Gpus(count=1)),
        "gpus",
        "nvidia.com/gpu",
        "LLAMESH_GPU_RESOURCES",
        "intel.com/gpu",
    ),
    ({}, Placement(priority_class="batch"), "priority_class", "batch", "LLAMESH_PRIORITY_CLASSES", ""),
    (
        {"LLAMESH_NODE_LABELS": "zone"},
        Placement(node_selector={"kubernetes.io/arch": "arm64"}),
        "node_selector",
        "kubernetes.io/arch",
        "LLAMESH_NODE_LABELS",
        "zone",
    ),
    (
        {"LLAMESH_NODE_LABELS": "zone"},
        tolerating("dedicated"),
        "tolerations",
        "dedicated",
        "LLAMESH_NODE_LABELS",
        "zone",
    ),
    (
        {"LLAMESH_NODE_LABELS": "llamesh.dev/*"},
        tolerating("llamesh.dev.evil/x"),
        "tolerations",
        "llamesh.dev.evil/x",
        "LLAMESH_NODE_LABELS",
        "llamesh.dev/*",
    ),
]


@pytest.mark.parametrize(("given", "placement"), ALLOWED)
def test_what_the_settings_allow_is_not_refused(given: dict[str, str], placement: Placement) -> None:
    assert placement_refusals(placement_policy(settings(**given)), placement) == []


@pytest.mark.parametrize(("given", "placement", "field", "value", "setting", "allowed"), REFUSED)
def test_what_they_do_not_allow_is_refused_with_field_value_and_setting(
    given: dict[str, str], placement: Placement, field: str, value: str, setting: str, allowed: str
) -> None:
    (refusal,) = placement_refusals(placement_policy(settings(**given)), placement)
    assert refusal.reason == "PLACEMENT_NOT_ALLOWED"
    assert refusal.metadata == {"field": f"placement.{field}", "value": value, "setting": setting, "allowed": allowed}
    assert refusal.message == f"placement.{field}: {value!r} is not one of {setting}, which are {allowed or 'none'}"
    assert "administrator" in refusal.remedy


@pytest.mark.parametrize("key", sorted(CONTROL_PLANE_TAINTS))
def test_taints_of_the_control_plane_are_never_tolerated(key: str) -> None:
    policy = placement_policy(settings(LLAMESH_NODE_LABELS=f"{key},node-role.kubernetes.io/*"))
    (refusal,) = placement_refusals(policy, tolerating(key))
    assert (refusal.reason, refusal.metadata) == (
        "PLACEMENT_NOT_ALLOWED",
        {"field": "placement.tolerations", "value": key},
    )
    assert "control plane" in refusal.message


def test_every_part_that_is_not_allowed_is_named_at_once() -> None:
    placement = Placement(
        node_selector={"b": "1", "a": "2"},
        tolerations=[Toleration(key="c")],
        gpus=Gpus(count=1, resource="other.example/gpu"),
        priority_class="d",
        image="e",
    )
    found = placement_refusals(placement_policy(settings()), placement)
    assert [each.metadata["value"] for each in found] == ["a", "b", "c", "other.example/gpu", "d", "e"]


def test_on_one_machine_any_placement_is_refused_because_nothing_acts_on_it() -> None:
    policy = placement_policy(settings(LLAMESH_RUNTIME="process"))
    assert policy is None
    assert placement_refusals(policy, Placement()) == []
    (refusal,) = placement_refusals(policy, Placement(image="engine:1"))
    assert (refusal.reason, refusal.metadata) == ("PLACEMENT_NEEDS_KUBERNETES", {"field": "placement"})
    assert "Leave out placement" in refusal.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLAMESH_ENGINE_IMAGES", "*"),
        ("LLAMESH_ENGINE_IMAGES", "engine*"),
        ("LLAMESH_ENGINE_IMAGES", "reg.example/*/engine"),
        ("LLAMESH_ENGINE_IMAGES", "engine:1 engine:2"),
        ("LLAMESH_GPU_RESOURCES", "gpu"),
        ("LLAMESH_GPU_RESOURCES", "nvidia.com/*"),
        ("LLAMESH_PRIORITY_CLASSES", "High"),
        ("LLAMESH_NODE_LABELS", "*"),
        ("LLAMESH_NODE_LABELS", "a/b/c"),
        ("LLAMESH_NODE_LABELS", "llamesh.dev*"),
    ],
)
def test_a_setting_that_would_allow_more_than_it_says_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        settings(**{name: value})
