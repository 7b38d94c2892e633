"""Policy of placements: compares where a server wants to run with what servers may name. Pure.

Invariant: no server tolerates the taints of the control plane, whatever is allowed otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llamesh.kit.config_kubernetes import KubernetesSettings
from llamesh.kit.errors import Reason
from llamesh.names import DEFAULT_GPU_RESOURCE
from llamesh.v1.server_pb2 import Placement
from services.contract.refusals import PolicyRefusal

CONTROL_PLANE_TAINTS = frozenset({"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"})
_ANY = "*"


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """What placements may name: exact names, or the beginning of names and "*"."""

    engine_images: Sequence[str]
    gpu_resources: Sequence[str]
    priority_classes: Sequence[str]
    node_labels: Sequence[str]


def placement_policy(settings: KubernetesSettings) -> PlacementPolicy | None:
    """Return the policy of the settings; None if engines are processes, which nothing places."""
    if settings.runtime != "kubernetes":
        return None
    images = (settings.engine_image, *settings.engine_images)
    return PlacementPolicy(
        tuple(dict.fromkeys(images)), settings.gpu_resources, settings.priority_classes, settings.node_labels
    )


def placement_refusals(policy: PlacementPolicy | None, placement: Placement) -> list[PolicyRefusal]:
    """Return the refusals because of a placement; none if it is empty."""
    if not placement.ListFields():
        return []
    if policy is None:
        return [
            PolicyRefusal.of(
                Reason.ERROR_REASON_PLACEMENT_NEEDS_KUBERNETES,
                "placement is for engines that are pods, and those of this mesh are processes of one machine",
                {"field": "placement"},
            )
        ]
    return list(_refusals(policy, placement))


def _refusals(policy: PlacementPolicy, placement: Placement) -> Iterator[PolicyRefusal]:
    tolerated = [toleration.key for toleration in placement.tolerations]
    asked = (
        ("node_selector", sorted(placement.node_selector), "LLAMESH_NODE_LABELS", policy.node_labels),
        ("tolerations", tolerated, "LLAMESH_NODE_LABELS", policy.node_labels),
        ("gpus", _resources(placement), "LLAMESH_GPU_RESOURCES", policy.gpu_resources),
        ("priority_class", _given(placement.priority_class), "LLAMESH_PRIORITY_CLASSES", policy.priority_classes),
        ("image", _given(placement.image), "LLAMESH_ENGINE_IMAGES", policy.engine_images),
    )
    for field, values, setting, allowed in asked:
        for value in values:
            if field == "tolerations" and value in CONTROL_PLANE_TAINTS:
                words = f"{value!r} is a taint of the control plane, which no server tolerates"
                yield _not_allowed(field, value, words, {})
            elif not is_allowed(value, allowed):
                listed = ",".join(allowed)
                words = f"{value!r} is not one of {setting}, which are {listed or 'none'}"
                yield _not_allowed(field, value, words, {"setting": setting, "allowed": listed})


def is_allowed(value: str, allowed: Iterable[str]) -> bool:
    """Return whether a value is one of those that are allowed, or begins with one that ends with "*"."""
    return any(_matches(value, each) for each in allowed)


def _matches(value: str, pattern: str) -> bool:
    beginning = pattern.removesuffix(_ANY)
    if beginning == pattern:
        return value == pattern
    # What follows "engine:" is a tag. With a slash "engine" would be the host of a registry, and what follows its port.
    is_host = beginning.endswith(":") and "/" in value[len(beginning) :]
    return value.startswith(beginning) and not is_host


def _not_allowed(field: str, value: str, words: str, metadata: dict[str, str]) -> PolicyRefusal:
    path = f"placement.{field}"
    return PolicyRefusal.of(
        Reason.ERROR_REASON_PLACEMENT_NOT_ALLOWED,
        f"{path}: {words}",
        {"field": path, "value": value, **metadata},
    )


def _resources(placement: Placement) -> list[str]:
    return [placement.gpus.resource or DEFAULT_GPU_RESOURCE] if placement.HasField("gpus") else []


def _given(value: str) -> list[str]:
    return [value] if value else []
