"""The Deployment, the Service and the disruption budget of a server's engines. No I/O.

Invariant: the same server gives the same manifests, so applying them again changes nothing. `controller.kubernetes.pod_template` has the
pods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller.kubernetes.modelserve import GROUP, SERVER_LABEL, VERSION
from controller.kubernetes.pod_template import START_SECONDS, PodSettings, pod_template
from controller.runtimes import LaunchSpec
from llamesh.kit.kubernetes_api import Object

COMPONENT = {"app.kubernetes.io/name": "llamesh-engine", "app.kubernetes.io/managed-by": "llamesh"}
_MAX_NAME = 52


@dataclass(frozen=True, slots=True)
class WorkloadOwner:
    """The object that a workload belongs to."""

    namespace: str
    name: str
    uid: str

    @property
    def workload(self) -> str:
        """Name of its Deployment and Service: a DNS label, which a name with dots is not. The uid keeps it apart from others."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name)[:_MAX_NAME].strip("-")
        return f"{words if words[:1].isalpha() else f'ms-{words}'}-{self.uid[:8]}"

    def has(self, pod: Object) -> bool:
        """Whether a pod is one of the Deployment. Labels are not enough: they may be written in any namespace.

        Who may create pods in this namespace may mount its Secrets too, so such a person is trusted with its servers.
        """
        metadata = pod["metadata"]
        makers = [each for each in metadata.get("ownerReferences") or [] if each.get("controller")]
        return metadata["namespace"] == self.namespace and any(
            each.get("kind") == "ReplicaSet" and str(each.get("name")).startswith(f"{self.workload}-")
            for each in makers
        )


def owner_of(item: Object) -> WorkloadOwner:
    """Return the owner of the workload of a ModelServe object."""
    metadata = item["metadata"]
    return WorkloadOwner(metadata["namespace"], metadata["name"], metadata["uid"])


def selector(uid: str) -> dict[str, str]:
    """Return the labels that select the pods of a server."""
    return {**COMPONENT, SERVER_LABEL: uid}


def label_selector(labels: Mapping[str, str]) -> str:
    """Return labels as the API takes a selector."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def deployment(
    owner: WorkloadOwner, spec: LaunchSpec, replicas: int, settings: PodSettings, memory_bytes: int
) -> Object:
    """Return the Deployment. `memory_bytes`: what one engine is expected to take; 0 if unknown."""
    labels = selector(owner.uid)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(owner),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            # Make before break: a pod leaves only after its successor gets requests.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": 2 * START_SECONDS,
            "template": pod_template(labels, spec, settings, memory_bytes),
        },
    }


def service(owner: WorkloadOwner) -> Object:
    """Return the Service, for tools of the cluster. The mesh reaches pods by their own addresses."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(owner),
        "spec": {
            "selector": selector(owner.uid),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def disruption_budget(owner: WorkloadOwner) -> Object:
    """Return what keeps drains of nodes from taking more than one engine at a time. One engine alone has none: no node could be drained."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(owner),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(owner.uid)}},
    }


def why_no_pods(deployment: Object) -> str:
    """Return why the cluster makes no pods of a Deployment, for instance because a priority class does not exist; empty if it does."""
    conditions = (deployment.get("status") or {}).get("conditions") or []
    return next(
        (
            str(each.get("message", ""))
            for each in conditions
            if each["type"] == "ReplicaFailure" and each["status"] == "True"
        ),
        "",
    )


def _metadata(owner: WorkloadOwner) -> Object:
    reference = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ModelServe",
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": owner.workload,
        "namespace": owner.namespace,
        "labels": selector(owner.uid),
        "ownerReferences": [reference],
    }
