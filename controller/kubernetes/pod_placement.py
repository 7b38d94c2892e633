"""Where the pods of a server run: the fields of a pod that a placement decides. No I/O.

Invariant: what a placement does not say is not in the pod, so the cluster's own defaults hold.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamesh.enum_words import camel_case
from llamesh.kit.kubernetes_api import Object
from llamesh.names import DEFAULT_GPU_RESOURCE
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Placement, Toleration

_HOSTNAME = "kubernetes.io/hostname"


def scheduling(placement: Placement, labels: Mapping[str, str]) -> Object:
    """Return what tells the scheduler where pods may run. `labels` select the pods of the server, which spread over the nodes."""
    made: Object = {"topologySpreadConstraints": [_spread(labels)]}
    if placement.node_selector:
        made["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerations:
        made["tolerations"] = [_toleration(each) for each in placement.tolerations]
    if placement.priority_class:
        made["priorityClassName"] = placement.priority_class
    return made


def gpu_limits(placement: Placement) -> dict[str, str]:
    """Return the limits of an engine's container that give it its GPUs. The cluster takes them for its requests too."""
    if not placement.HasField("gpus"):
        return {}
    return {placement.gpus.resource or DEFAULT_GPU_RESOURCE: str(placement.gpus.count)}


def _spread(labels: Mapping[str, str]) -> Object:
    """Return the wish that no node has two pods more than another. A wish only: one node may have to run all."""
    return {
        "maxSkew": 1,
        "topologyKey": _HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(labels)},
    }


def _toleration(toleration: Toleration) -> Object:
    exists = toleration.operator == server_pb2.TOLERATION_OPERATOR_EXISTS
    made: Object = {"key": toleration.key, "operator": "Exists" if exists else "Equal"}
    if not exists:
        made["value"] = toleration.value
    if toleration.effect:
        made["effect"] = camel_case(server_pb2.TaintEffect.Name(toleration.effect).removeprefix("TAINT_EFFECT_"))
    if toleration.HasField("toleration_seconds"):
        made["tolerationSeconds"] = toleration.toleration_seconds
    return made
