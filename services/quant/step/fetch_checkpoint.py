"""The step `fetch` of a job that is made from a checkpoint: brings its files into the job's folder.

The bytes come from the download service, because only it reads sources. Invariant: a file has its name only if it has the length, and the
digest if the source gives one, that the job was submitted with. A step that is repeated goes on at the first missing byte of a file with a
digest. The tokenizer is read before the weights come, so that no gigabytes move for a checkpoint that cannot be converted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llamesh.kit.channels import asking, call_options, channel
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError
from llamesh.names import DOWNLOAD, QUANT
from llamesh.v1.checkpoint_pb2 import CheckpointFile, GetCheckpointRequest, ReadCheckpointRequest
from llamesh.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from services.quant.job_sources import digest_of, has_weights, weight_bytes
from services.quant.step.checkpoint_texts import converted_here, read_texts
from services.quant.step.report import StepOutageError, StepRefusedError, report_progress, step_error
from services.quant.workspace import Workspace, finish

_READ_SECONDS = 24 * 3600.0
"""Deadline of the read of one file, as long as that of a step."""
_BLOCK = 1 << 20


def fetch_checkpoint(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Bring the files, and check that they are those that were submitted. Return the length of the weights."""
    try:
        return asyncio.run(_fetch(workspace, settings))
    except MeshError as error:
        raise step_error(error) from error
    except OSError as error:
        raise StepOutageError("STORE_UNAVAILABLE", f"the checkpoint cannot be written: {error.strerror}") from error


async def _fetch(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    spec = workspace.spec()
    workspace.checkpoint.mkdir(mode=0o700, exist_ok=True)
    async with channel(settings, DOWNLOAD, QUANT) as own:
        stub = CheckpointServiceStub(own)
        with asking(DOWNLOAD):
            found = await stub.GetCheckpoint(GetCheckpointRequest(source=spec.source), **call_options())
        if digest_of(found.files) != spec.source_sha256:
            raise StepRefusedError("CONTENT_MISMATCH", "the checkpoint was changed since the job was submitted")
        total, before = sum(file.size_bytes for file in found.files), 0
        checked = False
        for file in found.files:
            target = workspace.checkpoint / file.name
            if has_weights(file) and not checked:
                if converted_here(workspace.checkpoint, settings.llama_convert_bin):
                    read_texts(workspace.checkpoint)
                checked = True
            if not target.exists():
                await _bring(stub, spec.source, file, target, partial(_report, before, total))
            before += file.size_bytes
    return {"size": weight_bytes(found.files)}


def _report(before: int, total: int, done: int) -> None:
    report_progress(before + done, total)


async def _bring(stub: Any, source: str, file: CheckpointFile, target: Path, progress: Callable[[int], None]) -> None:
    """Bring one file. Raises MeshError, StepRefusedError and OSError; the bytes that came are kept for the next try."""
    unfinished = target.with_name(f"{target.name}.part")
    digest, first = _present(unfinished, file)
    done = first
    request = ReadCheckpointRequest(source=source, name=file.name, offset=first, version=file.version)
    with unfinished.open("ab") as copy, asking(DOWNLOAD):
        if first < file.size_bytes:
            call = stub.ReadCheckpoint(request, **call_options(_READ_SECONDS, waits=False))
            async for part in call:
                done += len(part.data)
                if done > file.size_bytes:
                    call.cancel()
                    break
                copy.write(part.data)
                digest.update(part.data)
                progress(done)
    if done != file.size_bytes or (_known(file) and digest.hexdigest() != _known(file)):
        unfinished.unlink()
        # The bytes of an earlier try may have been lost with the power of the machine.
        kind = StepOutageError if first else StepRefusedError
        raise kind("CONTENT_MISMATCH", f"{file.name} has other bytes than its source says")
    finish(unfinished, target)


def _present(unfinished: Path, file: CheckpointFile) -> tuple[Any, int]:
    """Return the digest of the bytes of an earlier try, and their number. Bytes that nothing will prove are removed."""
    digest, done = _begun(file), 0
    if unfinished.exists() and (not _known(file) or unfinished.stat().st_size > file.size_bytes):
        unfinished.unlink()
    if unfinished.exists():
        with unfinished.open("rb") as present:
            while block := present.read(_BLOCK):
                digest.update(block)
                done += len(block)
    return digest, done


def _known(file: CheckpointFile) -> str:
    """Return the digest that the source gives for a file; "" if it gives none."""
    return file.sha256 or file.git_blob


def _begun(file: CheckpointFile) -> Any:
    """Return the hash that makes the digest of a file, before its first byte. Git's id of a blob is the SHA-1 of a header and the bytes."""
    if file.sha256 or not file.git_blob:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
