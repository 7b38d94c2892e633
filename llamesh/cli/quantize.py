"""`llamesh quantize`: makes quantised variants of a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llamesh.cli.calibration import calibration_text
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.matrix_file import matrix_source
from llamesh.cli.output import Column, Output, show_list, show_one, size, text
from llamesh.cli.printing import note
from llamesh.cli.quant_connection import quant_connected
from llamesh.cli.quant_jobs import JOB, waited
from llamesh.cli.remedies import remedy_for
from llamesh.cli.sources import quantisable

if TYPE_CHECKING:
    from llamesh.v1.quant_pb2 import EstimateQuantJobResponse

ESTIMATE = (
    Column("TYPE", lambda item: item.type),
    Column("SIZE", lambda item: size(item.size_bytes)),
    Column("BITS", lambda item: f"{item.bits_per_weight:.1f}"),
    Column("MAX KL", lambda item: f"{item.max_kl_divergence:g}"),
    Column("WHY NOT", lambda item: _with_options(item.refusal.message), below=True),
)
_OPTIONS = {
    "model_uuid": "MODEL",
    "options.importance_matrix_source": "--imatrix",
    "options.calibration_text": "--calibration",
    "calibration_text": "--calibration",
    "max_kl_divergence": "--max-kl",
    "allow_requantize": "--allow-requantize",
    "importance_matrix": "--importance-matrix",
}
"""Fields of a request, and the options that set them."""


def quantize(
    model: str,
    *,
    types: Annotated[str, Parameter(help="The types to make, separated by commas: Q4_K_M,Q8_0.")] = "",
    name: str = "",
    allow_requantize: bool = False,
    pure: bool = False,
    importance_matrix: Annotated[bool, Parameter(negative="")] = False,
    calibration: Path | None = None,
    imatrix: str = "",
    max_kl: float = 0.0,
    dry_run: bool = False,
    wait: bool = False,
    output: Output = "table",
) -> int:
    """Make quantised variants of a model: NAME-TYPE, checked against the model and published.

    Parameters
    ----------
    model
        The id or name of a model in F16, BF16 or F32; or a checkpoint in safetensors files: hf:OWNER/REPO, or a folder as ./FOLDER.
    name
        What the ids of the variants begin with; the model's id without its type if not given.
    allow_requantize
        Accept a model that is quantised already. The result is worse.
    pure
        Give all tensors the same type.
    importance_matrix
        Measure which weights matter, and keep these more exact.
    calibration
        A file with the text to measure with; that of llamesh if not given. Implies --importance-matrix.
    imatrix
        A file of llama-imatrix for this model to use, instead of measuring: on this machine, or file:///FOLDER/FILE on that of the mesh.
    max_kl
        Largest KL divergence from the model with which a variant is published; that of its type if not given.
    dry_run
        Show what each type would give, and start nothing. Without --types: all types that quantise, so not F16 and BF16.
    wait
        Wait until the job has ended, and show the variants.
    """
    wanted = list(dict.fromkeys(each.strip().upper() for each in types.split(",") if each.strip()))
    if not wanted and not dry_run:
        raise CommandError(
            "which types are to be made?",
            hint=f"llamesh quantize {model} --types Q4_K_M,Q8_0; --dry-run shows all",
            code=Exit.USAGE,
        )
    from llamesh.cli.refusals import refused_in_words

    words = calibration_text(calibration) if calibration else ""
    measured = importance_matrix or calibration is not None
    with quant_connected() as mesh, refused_in_words(_with_options, {"INVALID_FIELD", "QUANT_REFUSED"}):
        with (
            quantisable(model, mesh, kept=not dry_run) as source,
            matrix_source(imatrix, mesh.profile, kept=not dry_run) as matrix,
        ):
            if dry_run:
                found = mesh.quant.estimate(
                    source,
                    wanted,
                    allow_requantize=allow_requantize,
                    importance_matrix=measured,
                    importance_matrix_source=matrix,
                )
                return _estimated(found, output)
            job = mesh.quant.create(
                source,
                wanted,
                name=name,
                allow_requantize=allow_requantize,
                pure=pure,
                importance_matrix=measured,
                calibration_text=words,
                importance_matrix_source=matrix,
                max_kl_divergence=max_kl,
            )
        if not wait:
            show_one(job, output, JOB)
            note(f"`llamesh jobs watch {job.job_id}` follows it")
            return Exit.OK
        return waited(mesh, job.job_id, output)


def _with_options(words: str) -> str:
    """Return a message with options in place of fields. A field that is a common word counts only before what is wrong with it."""
    words = re.sub(r"(?:^|(?<=; ))(name|types)(?:\[\d+\])?: ", r"--\1: ", words)
    for field, option in _OPTIONS.items():
        words = re.sub(rf"(?<![\w-]){re.escape(field)}(?!\w)", option, words)
    return words


def _estimated(found: EstimateQuantJobResponse, output: Output) -> int:
    """Show an estimate. A job that would be refused is an error."""
    show_list(found.types, output, ESTIMATE)
    if found.HasField("refusal"):
        raise CommandError(
            _with_options(text(found.refusal.message)), hint=remedy_for(found.refusal.reason, {}, found.refusal.remedy)
        )
    free = f"{size(found.free_bytes)} are free" if found.free_bytes else "on a volume of its own"
    note(f"at most {size(found.needed_bytes)} of disk while it runs, {free}")
    return Exit.OK
