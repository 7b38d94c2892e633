"""The objects of variants: their bucket, their keys, and the id of the model that each one holds. The step `publish` needs no tables."""

from __future__ import annotations

import hashlib

from llamesh.kit.config import Settings
from llamesh.kit.objects import ObjectStore, object_key, object_store
from llamesh.kit.own_places import quant_place
from llamesh.locations import variants_directory


def variant_uuid(name: str, of_type: str) -> str:
    """Return the id of the model that a job makes of a type."""
    return f"{name}-{of_type}"


def variant_key(job_id: str, of_type: str, sha256: str) -> str:
    """Return the key of the object that a job publishes for a type: always the same, so a repeated step makes no second object."""
    copy = hashlib.sha256(f"{job_id}/{of_type}".encode()).hexdigest()[:16]
    return object_key("models", sha256, ".gguf", copy=copy)


def description_key(key: str) -> str:
    """Return the key of the object that describes a published object: its `QuantModel` as JSON."""
    return f"{key.removesuffix('.gguf')}.json"


def bucket_of(settings: Settings, key: str = "") -> ObjectStore:
    """Return Quant's bucket: on the server of QUANT_MINIO_ENDPOINT, else on that of MINIO_ENDPOINT, else a folder of LLAMESH_HOME.

    `key` is the object that the caller publishes. At most one process at a time publishes it, so it identifies the writer.
    """
    return object_store(
        variants_directory(settings.home),
        quant_place(settings),
        cache_directory=settings.home / "cache",
        cache_bytes=settings.cache_bytes,
        writer=key,
    )
