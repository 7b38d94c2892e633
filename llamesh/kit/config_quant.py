"""The settings of the engine that runs quantisation jobs. `Settings` in `config.py` has them too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from llamesh.kit.config_types import ObjectName, named


class QuantEngineSettings(BaseSettings):
    """See Settings."""

    quant_engine: Literal["embedded", "argo"] = named(
        "QUANT_ENGINE",
        "embedded",
        "What runs quantisation jobs: embedded, as processes of this machine; argo, as workflows of Argo Workflows on Kubernetes.",
    )
    argo_namespace: ObjectName = named("LLAMESH_ARGO_NAMESPACE", "llm", "Namespace of the workflows.")
    argo_image: str = named(
        "LLAMESH_ARGO_IMAGE",
        "",
        "Image of the pods: llamesh with the extra `quant` (deploy/container). LLAMA_QUANTIZE_BIN and LLAMA_IMATRIX_BIN are paths in it.",
    )
    argo_service_account: ObjectName = named(
        "LLAMESH_ARGO_SERVICE_ACCOUNT",
        "llamesh-quant-step",
        "Service account of the workflows (deploy/argo/quant.yaml).",
    )
    argo_secret: ObjectName = named(
        "LLAMESH_ARGO_SECRET",
        "llamesh-quant",
        "Secret from which pods take MINIO_ACCESS_KEY, MINIO_SECRET_KEY and those with QUANT_ before them.",
    )
    argo_storage_class: str = named(
        "LLAMESH_ARGO_STORAGE_CLASS", "", "Storage class of the volume of a job. Unset: the default of the cluster."
    )
    argo_parallel_steps: Annotated[int, Field(ge=1, le=64)] = named(
        "LLAMESH_ARGO_PARALLEL_STEPS", 2, "Steps of one job that run at the same time."
    )
