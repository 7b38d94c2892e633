"""The settings of models: where they are kept and where they come from. `Settings` in `config.py` has them too."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode

from llamesh.kit.config_types import BytesPerSecond, Directory, HostAndPort, Positive, Split, named
from llamesh.kit.source_places import (
    HUB,
    OLLAMA,
    BucketName,
    HubEndpoint,
    OllamaRegistry,
    Registries,
    S3Places,
    WebAddress,
)


class ModelSettings(BaseSettings):
    """See Settings."""

    minio_endpoint: str = named(
        "MINIO_ENDPOINT", "", "host:port of an S3 server for models. Unset: a directory below LLAMESH_HOME."
    )
    minio_bucket: BucketName = named("MINIO_BUCKET", "inference-models", "Bucket for models.")
    minio_secure: bool = named("MINIO_SECURE", False, "Use TLS to the S3 server.")
    minio_access_key: SecretStr = named("MINIO_ACCESS_KEY", SecretStr(""), "S3 access key.")
    minio_secret_key: SecretStr = named("MINIO_SECRET_KEY", SecretStr(""), "S3 secret key.")
    cache_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = named(
        "LLAMESH_CACHE_BYTES",
        0,
        "Most bytes that this machine's copies of the models of an S3 server occupy. Copies that nothing uses make room for others, the"
        " least recently used first. 0: what the disk has room for.",
    )
    quant_service_url: WebAddress = named(
        "QUANT_SERVICE_URL", "", "Address of the Quant service, such as http://quant:8300."
    )
    quant_service_token: SecretStr = named(
        "QUANT_SERVICE_TOKEN", SecretStr(""), "Bearer token for the Quant service, sent to QUANT_SERVICE_URL only."
    )
    quant_minio_endpoint: str = named(
        "QUANT_MINIO_ENDPOINT", "", "host:port of the S3 server of the Quant service. Unset: that of MINIO_ENDPOINT."
    )
    quant_minio_bucket: BucketName = named("QUANT_MINIO_BUCKET", "llm-models", "Bucket of the Quant service.")
    quant_minio_secure: bool = named("QUANT_MINIO_SECURE", False, "Use TLS to QUANT_MINIO_ENDPOINT.")
    quant_minio_access_key: SecretStr = named("QUANT_MINIO_ACCESS_KEY", SecretStr(""), "Its S3 access key.")
    quant_minio_secret_key: SecretStr = named("QUANT_MINIO_SECRET_KEY", SecretStr(""), "Its S3 secret key.")
    llama_quantize_bin: str = named(
        "LLAMA_QUANTIZE_BIN", "", "Path of llama-quantize. Unset: the package cyllama (extra `quant`)."
    )
    llama_imatrix_bin: str = named(
        "LLAMA_IMATRIX_BIN",
        "",
        "Path of llama-imatrix, for importance matrices. Variants are made with them by LLAMA_QUANTIZE_BIN only.",
    )
    llama_convert_bin: str = named(
        "LLAMA_CONVERT_BIN",
        "",
        "Path of llama.cpp's convert_hf_to_gguf.py, for checkpoints of all its architectures. Unset: llamesh's own, for Llama, Mistral,"
        " Qwen2 and Qwen3.",
    )

    import_dirs: Annotated[tuple[Directory, ...], NoDecode, Split] = named(
        "LLAMESH_IMPORT_DIRS", (), "Folders for file: sources, besides LLAMESH_HOME/import."
    )
    source_hosts: Annotated[tuple[str, ...], NoDecode, Split] = named(
        "LLAMESH_SOURCE_HOSTS", (), "Hosts of https sources that are allowed although their address is private."
    )
    http_source_hosts: Annotated[tuple[HostAndPort, ...], NoDecode, Split] = named(
        "LLAMESH_HTTP_SOURCE_HOSTS", (), "host:port pairs of sources that are allowed without TLS, private or not."
    )

    download_part_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 30)] = named(
        "LLAMESH_DOWNLOAD_PART_BYTES",
        16 * 1024 * 1024,
        "Size of the parts in which a model is fetched, in bytes. A source without ranges is read as one stream.",
    )
    download_parallel_parts: Annotated[int, Field(ge=1, le=32)] = named(
        "LLAMESH_DOWNLOAD_PARALLEL_PARTS",
        4,
        "Parts of one model that are fetched at the same time; under a limit of bandwidth, no more than it fills in a second. At most this "
        "many are fetched again after a crash.",
    )
    download_bytes_per_second: BytesPerSecond = named(
        "LLAMESH_DOWNLOAD_BYTES_PER_SECOND",
        0,
        "Most bytes per second that all downloads of this process together read, in equal shares; files of this machine do not count."
        " 0: no limit; the least is 65536.",
    )
    download_paused_hours: Annotated[Positive, Field(le=87_600)] = named(
        "LLAMESH_DOWNLOAD_PAUSED_HOURS",
        168.0,
        "Hours for which the parts of a paused download are kept, and of one that failed because its source or the store was away. After"
        " that it begins anew once it is resumed or started. Meshes that share a bucket need the same value. MinIO itself removes parts 24"
        " hours after their download began, unless its stale_uploads_expiry is longer.",
    )
    hf_endpoint: HubEndpoint = named(
        "HF_ENDPOINT", HUB, "Address of the Hugging Face Hub or of a mirror, for hf: sources."
    )
    hf_token: SecretStr = named(
        "HF_TOKEN", SecretStr(""), "Token for gated and private repositories, sent to HF_ENDPOINT only."
    )
    s3_sources: Annotated[S3Places, NoDecode] = named(
        "LLAMESH_S3_SOURCES",
        {},
        'Places that s3://NAME/KEY reads, as JSON: {"NAME": {"endpoint": "host:port", "bucket": "...", "access_key": "...",'
        ' "secret_key": "...", "secure": true, "region": "us-east-1"}}.',
    )
    ollama_registry: OllamaRegistry = named(
        "LLAMESH_OLLAMA_REGISTRY", OLLAMA, "Address of Ollama's registry or of a mirror, for ollama: sources."
    )
    oci_registries: Annotated[Registries, NoDecode] = named(
        "LLAMESH_OCI_REGISTRIES",
        {},
        'Registries of oci: sources that need credentials, have a private address or no TLS, as JSON: {"HOST:PORT": {"username": "...",'
        ' "password": "...", "token_server": "https://HOST", "secure": true}}. Public repositories of others are read without.',
    )
