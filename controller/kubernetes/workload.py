"""The Deployment and the Service of a server's engines. No I/O.

Invariant: the same server gives the same manifests, so applying them again changes nothing. A pod may do no more than to serve: no token
of the cluster, no root, no writable files but temporary ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from controller.kubernetes.modelserve import GROUP, SERVER_LABEL, VERSION
from controller.launch import engine_document
from controller.runtimes import LaunchSpec
from llamesh.kit.kubernetes_api import Object

ROUTED_GATE = f"{GROUP}/routed"
"""Readiness gate of a pod: Envoy sends it requests."""
SPEC_LABEL = f"{GROUP}/spec"
SPEC_ANNOTATION = f"{GROUP}/engine"
COMPONENT = {"app.kubernetes.io/name": "llamesh-engine", "app.kubernetes.io/managed-by": "llamesh"}
PORT = 8080
WITHDRAWAL_SECONDS = 5
"""Seconds for which a pod that is deleted goes on as before: Envoy still sends it requests until it has seen the deletion."""
_SPARE_SECONDS = 10
_START_HOURS = 1
_PROBE_SECONDS = 2
_USER = 1000
_FOLDER = "/etc/llamesh"
_TEMPORARY = "/tmp"  # noqa: S108 - a volume of the pod
_MAX_NAME = 52
_MEMORY_SPARE = 256 << 20


@dataclass(frozen=True, slots=True)
class WorkloadOwner:
    """The object that a workload belongs to."""

    namespace: str
    name: str
    uid: str

    @property
    def workload(self) -> str:
        """Name of its Deployment and Service. The uid keeps it apart from what others have named so."""
        return f"{self.name[:_MAX_NAME]}-{self.uid[:8]}"


def selector(uid: str) -> dict[str, str]:
    """Return the labels that select the pods of a server."""
    return {**COMPONENT, SERVER_LABEL: uid}


def label_selector(labels: Mapping[str, str]) -> str:
    """Return labels as the API takes a selector."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def deployment(
    place: WorkloadOwner, spec: LaunchSpec, replicas: int, *, image: str, grace_seconds: float, memory_bytes: int
) -> Object:
    """Return the Deployment. `memory_bytes`: what one engine is expected to take; 0 if unknown."""
    labels = selector(place.uid)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(place),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            # Make before break: a pod leaves only after its successor gets requests.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": 2 * 3600 * _START_HOURS,
            "template": {
                "metadata": {
                    "labels": {**labels, SPEC_LABEL: spec.spec_hash},
                    "annotations": {
                        SPEC_ANNOTATION: json.dumps(
                            engine_document(spec, f"0.0.0.0:{PORT}", grace_seconds), sort_keys=True
                        )
                    },
                },
                "spec": _pod(spec, image, grace_seconds, memory_bytes),
            },
        },
    }


def service(place: WorkloadOwner) -> Object:
    """Return the Service, for tools of the cluster. The mesh reaches pods by their own addresses."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(place),
        "spec": {
            "selector": selector(place.uid),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _metadata(place: WorkloadOwner) -> Object:
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ModelServe",
        "name": place.name,
        "uid": place.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": place.workload,
        "namespace": place.namespace,
        "labels": selector(place.uid),
        "ownerReferences": [owner],
    }


def _pod(spec: LaunchSpec, image: str, grace_seconds: float, memory_bytes: int) -> Object:
    folders = _folders((spec.model_path, spec.projector_path, *spec.files.values(), *spec.adapter_paths.values()))
    names = {folder: f"models-{number}" for number, folder in enumerate(folders)}
    mounts = [{"name": name, "mountPath": folder, "readOnly": True} for folder, name in names.items()]
    item = {"path": "engine.json", "fieldRef": {"fieldPath": f"metadata.annotations['{SPEC_ANNOTATION}']"}}
    volumes = [{"name": name, "hostPath": {"path": folder, "type": "Directory"}} for folder, name in names.items()]
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": WITHDRAWAL_SECONDS + int(grace_seconds) + _SPARE_SECONDS,
        "readinessGates": [{"conditionType": ROUTED_GATE}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "engine",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python", "-P", "-m", "engine", f"{_FOLDER}/engine.json"],
                "env": [{"name": "HOME", "value": _TEMPORARY}, {"name": "TMPDIR", "value": _TEMPORARY}],
                "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
                "resources": _resources(memory_bytes),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "startupProbe": {**_health(), "failureThreshold": _START_HOURS * 3600 // _PROBE_SECONDS},
                "readinessProbe": {**_health(), "failureThreshold": 2},
                "livenessProbe": {**_health(), "periodSeconds": 10, "failureThreshold": 6},
                "lifecycle": {"preStop": {"sleep": {"seconds": WITHDRAWAL_SECONDS}}},
                # Without a message of its own, the last lines of the log explain the end.
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "spec", "mountPath": _FOLDER, "readOnly": True},
                    {"name": "temporary", "mountPath": _TEMPORARY},
                    *mounts,
                ],
            }
        ],
        "volumes": [
            {"name": "spec", "downwardAPI": {"items": [item]}},
            {"name": "temporary", "emptyDir": {"sizeLimit": "64Mi"}},
            *volumes,
        ],
    }


def _folders(paths: Iterable[str]) -> list[str]:
    return sorted({str(PurePosixPath(path).parent) for path in paths if path})


def _resources(memory_bytes: int) -> Object:
    """Return requests and limits. Mapped weights are pages of files, which the kernel takes back before it kills a container."""
    if not memory_bytes:
        return {}
    return {
        "requests": {"memory": str(memory_bytes)},
        "limits": {"memory": str(memory_bytes + memory_bytes // 4 + _MEMORY_SPARE)},
    }


def _health() -> Object:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": _PROBE_SECONDS,
        "timeoutSeconds": _PROBE_SECONDS,
    }
