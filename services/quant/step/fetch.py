"""The step `fetch`: links or copies the source, a model of the catalogue, into the job's folder.

On one machine it is a hard link: nothing is copied, and the bytes stay if the model is deleted in the meantime.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llamesh.background import BackgroundTask
from llamesh.kit.channels import asking, call_options, channel
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError
from llamesh.kit.gguf import GgufError, read_gguf
from llamesh.kit.logs import report_failure
from llamesh.kit.objects import ObjectDamagedError, ObjectNotFoundError, StoreError
from llamesh.kit.own_places import models_store
from llamesh.names import DOWNLOAD, QUANT
from llamesh.regular_files import must_be_copied
from llamesh.v1.download_pb2 import GetCatalogueModelRequest, LocateModelRequest, LocateModelResponse
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub
from llamesh.v1.model_pb2 import MODEL_FILE_ROLE_WEIGHTS
from services.quant.source_objects import SourceObjects, check_same
from services.quant.states import StepKind
from services.quant.step.report import StepOutageError, StepRefusedError, report_progress, step_error
from services.quant.workspace import JobSpec, StoredPart, Workspace, finish

T = TypeVar("T")

_LOCATE_SECONDS = 6 * 3600.0
"""Deadline of the download service, which may have to copy the model from an object store first."""
_REPORT_SECONDS = 60.0
_BLOCK = 1 << 22


def fetch(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Link or copy the source, and check that it is the model or the checkpoint that was submitted."""
    spec = workspace.spec()
    if spec.source:
        # Imported only if needed: it brings numpy.
        from services.quant.step.fetch_checkpoint import fetch_checkpoint

        return fetch_checkpoint(workspace, settings)
    if spec.uses_bucket(StepKind.FETCH, settings):
        parts = _objects(spec.objects or _listed(spec, settings), settings)
    else:
        parts = _located(spec, settings)
    try:
        _bring(parts, workspace)
        first = workspace.sources[0]
        with first.open("rb") as file:
            metadata = read_gguf(file, first.stat().st_size)
    except OSError as error:
        raise StepOutageError("STORE_UNAVAILABLE", f"the source cannot be copied: {error.strerror}") from error
    except GgufError as error:
        raise StepRefusedError("MODEL_INVALID", str(error)) from error
    return {"size": sum(part.size for part, _ in parts), "quantisation": metadata.quantisation}


def _listed(spec: JobSpec, settings: Settings) -> Sequence[StoredPart]:
    """Return the objects of the source in the bucket of the download service, as that service lists them."""

    async def find() -> Sequence[StoredPart]:
        async with channel(settings, DOWNLOAD, QUANT) as own:
            return (await SourceObjects(own).find(spec.model_uuid, spec.source_sha256))[1]

    try:
        return asyncio.run(find())
    except MeshError as error:
        raise step_error(error) from error


def _located(spec: JobSpec, settings: Settings) -> Sequence[tuple[StoredPart, Path]]:
    """Return the parts of the source, and the files in which the download service keeps them."""
    try:
        found = asyncio.run(_locate(settings, spec.model_uuid))
        check_same(found.model, spec.source_sha256)
    except MeshError as error:
        raise step_error(error) from error
    weights = [file for file in found.model.files if file.role == MODEL_FILE_ROLE_WEIGHTS]
    parts = (StoredPart("", file.size_bytes, file.sha256) for file in weights)
    return list(zip(parts, map(Path, found.file_paths), strict=False))


async def _locate(settings: Settings, model_uuid: str) -> LocateModelResponse:
    async with channel(settings, DOWNLOAD, QUANT) as own:
        stub = CatalogueServiceStub(own)
        with asking(DOWNLOAD):
            await stub.GetCatalogueModel(GetCatalogueModelRequest(model_uuid=model_uuid), **call_options())
            request = LocateModelRequest(model_uuid=model_uuid)
            return await _reported(stub.LocateModel(request, **call_options(_LOCATE_SECONDS, waits=False)))


def _objects(objects: Sequence[StoredPart], settings: Settings) -> Sequence[tuple[StoredPart, Path]]:
    """Return the parts of the source, and the files into which they were copied from the bucket of the download service."""
    try:
        paths = asyncio.run(_copied(objects, settings))
    except (ObjectNotFoundError, ObjectDamagedError) as error:
        raise StepRefusedError("MODEL_CORRUPT", str(error)) from error
    except StoreError as error:
        raise StepOutageError("STORE_UNAVAILABLE", str(error)) from error
    return list(zip(objects, paths, strict=True))


async def _copied(objects: Sequence[StoredPart], settings: Settings) -> Sequence[Path]:
    store = models_store(settings)
    try:
        return [await _reported(store.local_path(each.key, size=each.size)) for each in objects]
    finally:
        await store.close()


async def _reported(copying: Awaitable[T]) -> T:
    """Await a copy that is made elsewhere or by the store, with limits of its own, and report again and again that the step lives."""

    async def report() -> None:
        report_progress(0, 0)

    task = BackgroundTask("report a copy", report, report_failure, every=_REPORT_SECONDS)
    task.start()
    try:
        return await copying
    finally:
        await task.close()


def _bring(parts: Sequence[tuple[StoredPart, Path]], workspace: Workspace) -> None:
    """Link or copy the parts of the source. Its projector and its adapters stay: they have no variant."""
    done, total = 0, sum(part.size for part, _ in parts)
    for number, (part, path) in enumerate(parts, 1):
        target = workspace.source_part(number, len(parts))
        unfinished = target.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        try:
            # Parts are located by symbolic links: a link to one would not keep the bytes.
            os.link(path.resolve(), unfinished)
        except OSError as error:
            if not must_be_copied(error):
                raise
            _copy(part, path, unfinished, done, total)
        finish(unfinished, target)
        done += part.size


def _copy(part: StoredPart, path: Path, target: Path, done: int, total: int) -> None:
    """Copy a part and check its bytes. `done` bytes of all parts were there before."""
    digest = hashlib.sha256()
    with path.open("rb") as source, target.open("wb") as copy:
        while block := source.read(_BLOCK):
            copy.write(block)
            digest.update(block)
            done += len(block)
            report_progress(done, total)
    if digest.hexdigest() != part.sha256:
        raise StepRefusedError("CONTENT_MISMATCH", "the source has other bytes than its record")
