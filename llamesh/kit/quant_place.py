"""The bucket in which the Quant service keeps its models."""

from __future__ import annotations

from llamesh.kit.config import Settings
from llamesh.kit.source_places import S3Place


def quant_place(settings: Settings) -> S3Place | None:
    """Return the bucket: on the server of QUANT_MINIO_ENDPOINT, else on MINIO_ENDPOINT with its keys; None if neither is set."""
    if settings.quant_minio_endpoint:
        return S3Place(
            endpoint=settings.quant_minio_endpoint,
            bucket=settings.quant_minio_bucket,
            access_key=settings.quant_minio_access_key,
            secret_key=settings.quant_minio_secret_key,
            secure=settings.quant_minio_secure,
        )
    if settings.minio_endpoint:
        return S3Place(
            endpoint=settings.minio_endpoint,
            bucket=settings.quant_minio_bucket,
            access_key=settings.minio_access_key,
            secret_key=settings.minio_secret_key,
            secure=settings.minio_secure,
        )
    return None
