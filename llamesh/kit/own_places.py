"""The buckets in which this mesh keeps models: that of the download service, with its store, and that of the Quant service."""

from __future__ import annotations

from datetime import timedelta

from llamesh.kit.config import Settings
from llamesh.kit.objects import ObjectStore, object_store
from llamesh.kit.source_places import StorePlace


def models_place(settings: Settings) -> StorePlace | None:
    """Return the bucket of the download service, on MINIO_ENDPOINT; None if it is not set: models are kept in a directory then."""
    return _on_minio(settings, settings.minio_bucket, "MINIO_BUCKET")


def models_store(settings: Settings, *, writer: str = "", kept: timedelta = timedelta()) -> ObjectStore:
    """Return the store of the download service: its bucket, or a directory of LLAMESH_HOME. See `object_store`."""
    return object_store(
        settings.home / "objects",
        models_place(settings),
        cache_directory=settings.home / "cache",
        cache_bytes=settings.cache_bytes,
        kept=kept,
        writer=writer,
    )


def quant_place(settings: Settings) -> StorePlace | None:
    """Return the bucket of Quant: on the server of QUANT_MINIO_ENDPOINT, else on MINIO_ENDPOINT with its keys; None if neither is set."""
    if settings.quant_minio_endpoint:
        return StorePlace(
            endpoint=settings.quant_minio_endpoint,
            bucket=settings.quant_minio_bucket,
            access_key=settings.quant_minio_access_key,
            secret_key=settings.quant_minio_secret_key,
            secure=settings.quant_minio_secure,
            server_settings="QUANT_MINIO_",
            bucket_setting="QUANT_MINIO_BUCKET",
        )
    return _on_minio(settings, settings.quant_minio_bucket, "QUANT_MINIO_BUCKET")


def _on_minio(settings: Settings, bucket: str, bucket_setting: str) -> StorePlace | None:
    if not settings.minio_endpoint:
        return None
    return StorePlace(
        endpoint=settings.minio_endpoint,
        bucket=bucket,
        access_key=settings.minio_access_key,
        secret_key=settings.minio_secret_key,
        secure=settings.minio_secure,
        bucket_setting=bucket_setting,
    )
