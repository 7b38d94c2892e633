"""The step `publish`: writes a verified variant into Quant's bucket, under the key that the service has recorded for it.

The store writes under a temporary name and makes the object visible atomically. After that, the service records the model. A description
of the variant, with the results of its checks, is written before under the same name with `.json`, for readers of the bucket alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.json_format import MessageToJson

from llamesh.kit.config import Settings
from llamesh.kit.objects import StoreDeniedError, StoreError, StoreFullError
from llamesh.v1.quant_pb2 import QuantModel, QuantReport
from services.quant.step.report import StepOutageError, StepRefusedError, report_progress
from services.quant.variant_objects import bucket_of, description_key, variant_key, variant_uuid
from services.quant.workspace import JobSpec, Workspace

_BLOCK = 1 << 22


def publish(workspace: Workspace, of_type: str, settings: Settings) -> dict[str, Any]:
    """Publish the variant of a type."""
    verified = workspace.result("verify", of_type)
    if verified is None:
        raise StepRefusedError("QUANTISATION_FAILED", "the variant was not verified in this folder")
    key = variant_key(workspace.spec().job_id, of_type, verified["sha256"])
    description = _description(workspace.spec(), of_type, settings, key, verified)
    try:
        asyncio.run(_publish(workspace, of_type, settings, description, verified))
    except (StoreFullError, StoreDeniedError) as error:
        raise StepRefusedError("STORE_UNAVAILABLE", str(error)) from error
    except StoreError as error:
        raise StepOutageError("STORE_UNAVAILABLE", str(error)) from error
    return {"object_key": key}


def _description(spec: JobSpec, of_type: str, settings: Settings, key: str, verified: dict[str, Any]) -> QuantModel:
    """Return the description of the variant: what the service will answer about it, without the time."""
    uuid = variant_uuid(spec.name, of_type)
    return QuantModel(
        model_uuid=uuid,
        name=f"{uuid}.gguf",
        bucket=settings.quant_minio_bucket,
        object_key=key,
        size_bytes=verified["size"],
        sha256=verified["sha256"],
        quantisation=of_type,
        source_model_uuid=spec.model_uuid,
        source_sha256=spec.source_sha256,
        source=spec.shown_source,
        job_id=spec.job_id,
        report=QuantReport(**verified["report"]),
    )


async def _publish(
    workspace: Workspace, of_type: str, settings: Settings, description: QuantModel, verified: dict[str, Any]
) -> None:
    key = description.object_key
    store = bucket_of(settings, key)
    try:
        await store.prepare()
        words = MessageToJson(description, preserving_proto_field_name=True).encode()
        described = await store.stage(_once(words), expected_size=len(words))
        try:
            await described.publish(description_key(key))
        finally:
            await described.discard()
        staged = await store.stage(_blocks(workspace, of_type, verified["size"]), expected_size=verified["size"])
        try:
            if staged.sha256 != verified["sha256"]:
                raise StepRefusedError("CONTENT_MISMATCH", "the variant has changed since it was verified")
            await staged.publish(key)
        finally:
            await staged.discard()
    finally:
        await store.close()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _blocks(workspace: Workspace, of_type: str, total: int) -> AsyncIterator[bytes]:
    done = 0
    with workspace.variant(of_type).open("rb") as file:
        while block := await asyncio.to_thread(file.read, _BLOCK):
            done += len(block)
            report_progress(done, total)
            yield block
