"""The settings of the runtime of engines on Kubernetes. `Settings` in `config.py` has them too."""

from __future__ import annotations

from typing import Literal

from pydantic_settings import BaseSettings

from llamesh.kit.config_types import ObjectName, named


class KubernetesSettings(BaseSettings):
    """See Settings."""

    runtime: Literal["process", "kubernetes"] = named(
        "LLAMESH_RUNTIME",
        "process",
        "Where engines run: process, as processes of this machine; kubernetes, as pods of a cluster, declared as ModelServe objects.",
    )
    engine_image: str = named(
        "LLAMESH_ENGINE_IMAGE",
        "inference-engine:latest",
        "Image of engine pods: llamesh with the extra `engine` (deploy/container).",
    )
    lease_namespace: ObjectName = named(
        "LLAMESH_LEASE_NAMESPACE", "default", "Namespace of the Lease that elects the controller that writes."
    )
