"""The step `quantize`: makes the variant of a type with the quantiser."""

from __future__ import annotations

import re
from typing import Any

from llamesh.cores import usable_cores
from llamesh.kit.config import Settings
from services.quant.step.llama_program import ProgressMarks, program_at, run_program
from services.quant.step.report import StepRefusedError
from services.quant.workspace import Workspace, finish

_TENSORS = ProgressMarks(re.compile(r"\[\s*(\d+)/\s*(\d+)\]"))


def quantize(workspace: Workspace, of_type: str, settings: Settings) -> dict[str, Any]:
    """Make the variant of a type."""
    spec = workspace.spec()
    target = workspace.variant(of_type)
    unfinished = target.with_suffix(".part")
    options = [
        *(["--allow-requantize"] if spec.allow_requantize else []),
        *(["--pure"] if spec.pure else []),
        # A relative name, because llama-quantize writes it into the file.
        *(["--imatrix", workspace.matrix.name] if spec.importance_matrix else []),
    ]
    words = [str(workspace.sources[0]), str(unfinished), of_type, str(usable_cores()), *options]
    try:
        run_program(
            "the quantiser",
            "services.quant.step.quantiser",
            words,
            _TENSORS,
            folder=workspace.folder,
            variables={"LLAMA_QUANTIZE_BIN": program_at(settings.llama_quantize_bin)},
        )
        if not unfinished.exists():
            raise StepRefusedError("QUANTISATION_FAILED", "the quantiser has written nothing")
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finish(unfinished, target)
    return {"size": target.stat().st_size}
