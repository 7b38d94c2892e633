"""The pods of a server's engines. No I/O. `controller.kubernetes.pod_placement` has what says where they run.

Invariant: a pod may do no more than to serve: no token of the cluster, no root, no writable files but temporary ones, and only the
container that fetches the model, whose image no server chooses, has the keys of the store. It fits the Pod Security Standard "restricted".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from controller.kubernetes import pod_paths as paths
from controller.kubernetes.modelserve import GROUP
from controller.kubernetes.pod_placement import gpu_limits, scheduling
from controller.launch import engine_document
from controller.runtimes import LaunchSpec
from llamesh.kit.config import Settings
from llamesh.kit.kubernetes_api import Object
from llamesh.v1.server_pb2 import Placement

ROUTED_GATE = f"{GROUP}/routed"
"""Readiness gate of a pod: Envoy sends it requests."""
SPEC_LABEL = f"{GROUP}/spec"
SPEC_ANNOTATION, OBJECTS_ANNOTATION = f"{GROUP}/engine", f"{GROUP}/objects"
PORT = 8080
WITHDRAWAL_SECONDS = 5
"""Seconds for which a pod that is deleted goes on as before: Envoy still sends it requests until it has seen the deletion."""
START_SECONDS = 3600
"""Seconds that a model may take to be loaded."""
_SPARE_SECONDS = 10
_PROBE_SECONDS = 2
_USER = 1000
_MEMORY_SPARE = 256 << 20


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What the pods of all servers have in common."""

    image: str
    grace_seconds: float
    store_secret: str
    """Secret with the variables that lead to the store of models."""
    cache_claim: str
    """Claim of the cache that all pods of a node share; empty: each pod has a cache of its own."""
    cache_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> PodSettings:
        """Return those of the settings."""
        return cls(
            settings.engine_image,
            settings.drain_seconds,
            settings.engine_store_secret,
            settings.engine_cache_claim,
            settings.cache_bytes,
        )


def pod_template(labels: Mapping[str, str], spec: LaunchSpec, settings: PodSettings, memory_bytes: int) -> Object:
    """Return the template of a server's pods. `memory_bytes`: what one engine is expected to take; 0 if unknown."""
    return {
        "metadata": {
            "labels": {**labels, SPEC_LABEL: spec.spec_hash},
            "annotations": _documents(spec, settings),
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": WITHDRAWAL_SECONDS + int(settings.grace_seconds) + _SPARE_SECONDS,
            "readinessGates": [{"conditionType": ROUTED_GATE}],
            **scheduling(spec.placement, labels),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [_fetcher(settings)],
            "containers": [_engine(spec.placement, settings, memory_bytes)],
            "volumes": _volumes(settings),
        },
    }


def _documents(spec: LaunchSpec, settings: PodSettings) -> dict[str, str]:
    """Return the files of a pod, as annotations: they change with the pod, and need no object of their own."""
    engine = engine_document(spec, f"0.0.0.0:{PORT}", settings.grace_seconds)
    objects = [asdict(each) for each in spec.objects]
    return {
        SPEC_ANNOTATION: json.dumps(engine, sort_keys=True),
        OBJECTS_ANNOTATION: json.dumps(objects, sort_keys=True),
    }


def _fetcher(settings: PodSettings) -> Object:
    """Return the container that brings the files of the model to the node."""
    limit = [{"name": "LLAMESH_CACHE_BYTES", "value": str(settings.cache_bytes)}]
    return {
        **_container(
            "fetch", settings.image, ["engine.fetch", f"{paths.SPEC_FOLDER}/{paths.OBJECTS_FILE}", paths.CACHE]
        ),
        "envFrom": [{"secretRef": {"name": settings.store_secret}}],
        "env": [*_environment(), *limit],
        "volumeMounts": _mounts(writes=True),
    }


def _engine(placement: Placement, settings: PodSettings, memory_bytes: int) -> Object:
    image = placement.image or settings.image
    return {
        **_container("engine", image, ["engine", f"{paths.SPEC_FOLDER}/{paths.SPEC_FILE}"]),
        "env": _environment(),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": _resources(memory_bytes, gpu_limits(placement)),
        "startupProbe": {**_health(), "failureThreshold": START_SECONDS // _PROBE_SECONDS},
        "readinessProbe": {**_health(), "failureThreshold": 2},
        "livenessProbe": {**_health(), "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": WITHDRAWAL_SECONDS}}},
        "volumeMounts": _mounts(writes=False),
    }


def _container(name: str, image: str, program: list[str]) -> Object:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-P", "-m", *program],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # Without a message of its own, the last lines of the log explain the end.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _environment() -> list[Object]:
    return [{"name": name, "value": paths.TEMPORARY} for name in ("HOME", "TMPDIR")]


def _mounts(*, writes: bool) -> list[Object]:
    read_only = {} if writes else {"readOnly": True}
    return [
        {"name": "documents", "mountPath": paths.SPEC_FOLDER, "readOnly": True},
        {"name": "temporary", "mountPath": paths.TEMPORARY},
        {"name": "models", "mountPath": paths.MODELS, **read_only},
        {"name": "cache", "mountPath": paths.CACHE, **read_only},
    ]


def _volumes(settings: PodSettings) -> list[Object]:
    files = ((paths.SPEC_FILE, SPEC_ANNOTATION), (paths.OBJECTS_FILE, OBJECTS_ANNOTATION))
    items = [
        {"path": file, "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{annotation}']"}}
        for file, annotation in files
    ]
    claimed: Object = {"persistentVolumeClaim": {"claimName": settings.cache_claim}}
    return [
        {"name": "documents", "downwardAPI": {"items": items}},
        {"name": "temporary", "emptyDir": {"sizeLimit": "64Mi"}},
        {"name": "models", "emptyDir": {"sizeLimit": "1Mi"}},
        {"name": "cache", **(claimed if settings.cache_claim else {"emptyDir": {}})},
    ]


def _resources(memory_bytes: int, gpus: Mapping[str, str]) -> Object:
    """Return requests and limits. Mapped weights are pages of files, which the kernel takes back before it kills a container."""
    limits = {**({"memory": str(memory_bytes + memory_bytes // 4 + _MEMORY_SPARE)} if memory_bytes else {}), **gpus}
    requests = {"memory": str(memory_bytes)} if memory_bytes else {}
    return {name: each for name, each in (("requests", requests), ("limits", limits)) if each}


def _health() -> Object:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": _PROBE_SECONDS,
        "timeoutSeconds": _PROBE_SECONDS,
    }
