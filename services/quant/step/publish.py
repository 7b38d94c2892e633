"""The step `publish`: writes a verified variant into Quant's bucket, under the key that the service has recorded for it.

The store writes under a temporary name and makes the object visible atomically. After that, the service records the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from llamesh.kit.config import Settings
from llamesh.kit.objects import StoreDeniedError, StoreError, StoreFullError
from services.quant.step.report import StepOutageError, StepRefusedError, report_progress
from services.quant.variants import bucket_of, variant_key
from services.quant.workspace import Workspace

_BLOCK = 1 << 22


def publish(workspace: Workspace, of_type: str, settings: Settings) -> dict[str, Any]:
    """Publish the variant of a type."""
    verified = workspace.result("verify", of_type)
    if verified is None:
        raise StepRefusedError("QUANTISATION_FAILED", "the variant was not verified in this folder")
    key = variant_key(workspace.spec().job_id, of_type, verified["sha256"])
    try:
        asyncio.run(_publish(workspace, of_type, settings, key, verified))
    except (StoreFullError, StoreDeniedError) as error:
        raise StepRefusedError("STORE_UNAVAILABLE", str(error)) from error
    except StoreError as error:
        raise StepOutageError("STORE_UNAVAILABLE", str(error)) from error
    return {"object_key": key}


async def _publish(workspace: Workspace, of_type: str, settings: Settings, key: str, verified: dict[str, Any]) -> None:
    store = bucket_of(settings)
    try:
        await store.prepare()
        staged = await store.stage(_blocks(workspace, of_type, verified["size"]), expected_size=verified["size"])
        try:
            if staged.sha256 != verified["sha256"]:
                raise StepRefusedError("CONTENT_MISMATCH", "the variant has changed since it was verified")
            await staged.publish(key)
        finally:
            await staged.discard()
    finally:
        await store.close()


async def _blocks(workspace: Workspace, of_type: str, total: int) -> AsyncIterator[bytes]:
    done = 0
    with workspace.variant(of_type).open("rb") as file:
        while block := await asyncio.to_thread(file.read, _BLOCK):
            done += len(block)
            report_progress(done, total)
            yield block
