"""The settings of the runtime of engines on Kubernetes. `Settings` in `config.py` has them too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic_settings import BaseSettings, NoDecode

from llamesh.kit.config_types import DomainName, ImagePattern, LabelPattern, ObjectName, ResourceName, Split, named
from llamesh.names import DEFAULT_GPU_RESOURCE


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
    engine_images: Annotated[tuple[ImagePattern, ...], NoDecode, Split] = named(
        "LLAMESH_ENGINE_IMAGES",
        (),
        "Images besides LLAMESH_ENGINE_IMAGE that servers may name for their engines; with * after a / or : at the end, all that begin so.",
    )
    gpu_resources: Annotated[tuple[ResourceName, ...], NoDecode, Split] = named(
        "LLAMESH_GPU_RESOURCES",
        (DEFAULT_GPU_RESOURCE, "amd.com/gpu"),
        "Resources of nodes that servers may ask for as GPUs.",
    )
    priority_classes: Annotated[tuple[DomainName, ...], NoDecode, Split] = named(
        "LLAMESH_PRIORITY_CLASSES", (), "Priority classes that servers may name for their pods."
    )
    node_labels: Annotated[tuple[LabelPattern, ...], NoDecode, Split] = named(
        "LLAMESH_NODE_LABELS",
        (
            "kubernetes.io/arch",
            "kubernetes.io/os",
            "node.kubernetes.io/instance-type",
            "topology.kubernetes.io/region",
            "topology.kubernetes.io/zone",
            DEFAULT_GPU_RESOURCE,
            "nvidia.com/gpu.product",
            "amd.com/gpu",
            "llamesh.dev/*",
        ),
        "Keys of labels and taints of nodes that servers may select nodes by and tolerate; with * after a / at the end, all that begin so."
        " Taints of the control plane are never tolerated.",
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
