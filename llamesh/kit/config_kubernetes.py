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
    engine_store_secret: ObjectName = named(
        "LLAMESH_ENGINE_STORE_SECRET",
        "llamesh-models",
        "Secret with MINIO_ENDPOINT, MINIO_BUCKET, MINIO_SECURE and keys that may read the bucket, for engine pods to fetch models.",
    )
    engine_cache_claim: str = named(
        "LLAMESH_ENGINE_CACHE_CLAIM",
        "",
        "Claim of a volume that is a folder of each node, in which all engine pods of the node share the files of models. Unset: each pod"
        " fetches its own.",
    )
