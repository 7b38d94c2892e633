"""The step `imatrix`: measures with llama-imatrix which weights of the source matter for a text, or takes the matrix of the job."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from llamesh.cores import usable_cores
from llamesh.kit.config import Settings
from services.quant.states import StepKind
from services.quant.step import importance
from services.quant.step.failure_messages import TOO_SHORT
from services.quant.step.llama_program import ProgressMarks, program_at, run_program
from services.quant.step.report import StepRefusedError
from services.quant.workspace import Workspace, finish

CHUNK_TOKENS = 512
"""Tokens that are read at once. The text needs twice as many."""
_CHUNKS = ProgressMarks(re.compile(r"\[(\d+)\]-?[\d.a-z]+,"), re.compile(r"computing over (\d+) chunks"))


def imatrix(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Make the importance matrix. Return its SHA-256 and the number of its tensors."""
    if workspace.spec().asks_download(StepKind.IMATRIX, settings):
        from services.quant.step.given_matrix import given_matrix

        return given_matrix(workspace, settings)
    unfinished = workspace.folder / "unfinished-matrix.gguf"
    threads, chunk = str(usable_cores()), str(CHUNK_TOKENS)
    # Relative names of the text and the matrix, because llama-imatrix writes them into the matrix and llama-quantize into variants.
    words = [
        *(
            program_at(settings.llama_imatrix_bin),
            "--model",
            str(workspace.sources[0]),
            "--file",
            workspace.calibration.name,
        ),
        *("--output", unfinished.name, "--output-frequency", "1000000", "--threads", threads),
        *("--ctx-size", chunk, "--batch-size", chunk, "--ubatch-size", chunk),
    ]
    try:
        run_program(
            "llama-imatrix",
            "services.quant.step.llama_program",
            words,
            _CHUNKS,
            folder=workspace.folder,
            variables={},
            usual_reason=TOO_SHORT,
        )
        tensors = importance.read(unfinished) if unfinished.exists() else {}
        if not tensors:
            raise StepRefusedError("QUANTISATION_FAILED", "llama-imatrix has measured nothing")
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finish(unfinished, workspace.matrix)
    with workspace.matrix.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "tensors": len(tensors)}
