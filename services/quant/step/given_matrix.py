"""Brings the importance matrix that a job was given, checks it, and writes it again for the quantiser.

The bytes come from the download service, because only it reads sources. Invariant: llama.cpp parses only a file that llamesh has written:
it trusts the numbers of a matrix, and copies the names in it, which may be paths of another machine, into variants.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

from llamesh.file_limits import MAX_MATRIX_BYTES
from llamesh.kit.channels import asking, call_options, channel
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError
from llamesh.kit.gguf import GgufError, read_tensors
from llamesh.names import DOWNLOAD, QUANT
from llamesh.v1.checkpoint_pb2 import GetMatrixFileRequest, ReadMatrixFileRequest
from llamesh.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from services.quant.step.llama_program import full_disk
from services.quant.step.matrix_entries import MatrixEntry, MatrixRefusedError, read_entries
from services.quant.step.report import StepOutageError, StepRefusedError, report_progress, step_error
from services.quant.workspace import JobSpec, Workspace, finish

_READ_SECONDS = 3600.0


def given_matrix(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Bring, check and write the matrix. Return the SHA-256 of the file that was given and the number of its tensors."""
    spec = workspace.spec()
    received, unfinished = workspace.folder / "given-matrix.part", workspace.folder / "unfinished-matrix.gguf"
    try:
        sha256 = asyncio.run(_bring(spec, received, settings))
        entries = read_entries(received, _shapes(workspace.sources))
        _write(unfinished, entries)
        finish(unfinished, workspace.matrix)
    except MeshError as error:
        raise step_error(error) from error
    except MatrixRefusedError as error:
        raise StepRefusedError("QUANT_REFUSED", f"the importance matrix cannot be used: {error}") from error
    except OSError as error:
        if full := full_disk(workspace.folder):
            raise StepRefusedError("STORE_UNAVAILABLE", full) from error
        words = error.strerror or "a write ended early"
        raise StepOutageError("STORE_UNAVAILABLE", f"the importance matrix cannot be written: {words}") from error
    finally:
        received.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
    return {"sha256": sha256, "tensors": len(entries)}


async def _bring(spec: JobSpec, target: Path, settings: Settings) -> str:
    """Copy the file. Return its SHA-256. Raises MeshError, StepRefusedError and OSError."""
    digest, done = hashlib.sha256(), 0
    request = ReadMatrixFileRequest(source=spec.matrix_source, version=spec.matrix_version)
    async with channel(settings, DOWNLOAD, QUANT) as own:
        stub = CheckpointServiceStub(own)
        with target.open("wb") as copy, asking(DOWNLOAD):
            await stub.GetMatrixFile(GetMatrixFileRequest(source=spec.matrix_source), **call_options())
            call = stub.ReadMatrixFile(request, **call_options(_READ_SECONDS, waits=False))
            async for part in call:
                done += len(part.data)
                if done > MAX_MATRIX_BYTES:
                    call.cancel()
                    raise StepRefusedError(
                        "QUANT_REFUSED", f"the importance matrix has more than {MAX_MATRIX_BYTES} bytes"
                    )
                copy.write(part.data)
                digest.update(part.data)
                report_progress(done, 0)
    return digest.hexdigest()


def _shapes(sources: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of the source by name, shortest stride first."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sources:
        try:
            with path.open("rb") as file:
                found |= {info.name: info.shape for info in read_tensors(file, path.stat().st_size)[1]}
        except GgufError as error:
            raise StepRefusedError("MODEL_INVALID", str(error)) from error
    return found


def _write(target: Path, entries: Sequence[MatrixEntry]) -> None:
    """Write a matrix as llama-imatrix does."""
    writer = gguf.GGUFWriter(target, "")
    try:
        writer.add_type("imatrix")
        # llama-quantize demands these keys, and writes the name of the text into each variant. How much was measured is not known.
        writer.add_array("imatrix.datasets", ["given"])
        writer.add_uint32("imatrix.chunk_count", 0)
        writer.add_uint32("imatrix.chunk_size", 0)
        for entry in entries:
            writer.add_tensor(f"{entry.name}.in_sum2", entry.sums)
            writer.add_tensor(f"{entry.name}.counts", entry.counts)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
