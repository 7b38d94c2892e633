"""`llamesh quantize`, `llamesh jobs ls, show, cancel, retry, rm` and `llamesh variants ls, rm`: the Quant service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from llamesh.cli.calibration import calibration_text
from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.job_progress import JobProgress, kind_of, now, state_of
from llamesh.cli.output import Column, Output, show_list, show_one, size, text, when, word
from llamesh.cli.printing import note
from llamesh.cli.quality import divergence, same_top_token
from llamesh.cli.quant_connection import calls_quant, quant_connected
from llamesh.cli.sources import quantisable

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.quant_pb2 import EstimateQuantJobResponse, QuantJob

jobs = App(name="jobs", help="Jobs that make quantised variants.")
variants = App(name="variants", help="Quantised variants that jobs have published.")
JobId = Annotated[str, Parameter(help="The id of the job.")]
VariantId = Annotated[str, Parameter(help="The id of the variant.")]


def _state(job: QuantJob) -> str:
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantJobState, job.state, "QUANT_JOB_STATE_")


JOB = (
    Column("JOB", lambda job: job.job_id),
    Column("MODEL", lambda job: job.model_uuid or job.source),
    Column("TYPES", lambda job: ", ".join(job.types)),
    Column("STATE", _state),
    Column("NOW", now),
    Column("WHY", lambda job: job.error.message, below=True),
    Column("STARTED", lambda job: when(job.create_time), wide=True),
    Column("OWNER", lambda job: job.owner, wide=True),
)
STEP = (
    Column("STEP", kind_of),
    Column("TYPE", lambda step: step.type),
    Column("STATE", state_of),
    Column("TRIES", lambda step: step.tries),
    Column("WHY", lambda step: step.error.message, below=True),
)
ESTIMATE = (
    Column("TYPE", lambda item: item.type),
    Column("SIZE", lambda item: size(item.size_bytes)),
    Column("BITS", lambda item: f"{item.bits_per_weight:.1f}"),
    Column("MAX KL", lambda item: f"{item.max_kl_divergence:g}"),
    Column("WHY NOT", lambda item: item.refusal.message, below=True),
)
VARIANT = (
    Column("MODEL", lambda model: model.model_uuid),
    Column("SIZE", lambda model: size(model.size_bytes)),
    Column("BITS", lambda model: f"{model.report.bits_per_weight:.2f}"),
    Column("KL", lambda model: divergence(model.report)),
    Column("SAME TOP", lambda model: same_top_token(model.report)),
    Column("FROM", lambda model: model.source_model_uuid or model.source),
    Column("JOB", lambda model: model.job_id, wide=True),
    Column("SHA256", lambda model: model.sha256, wide=True),
)


def quantize(
    model: str,
    *,
    types: Annotated[str, Parameter(help="The types to make, separated by commas: Q4_K_M,Q8_0.")] = "",
    name: str = "",
    allow_requantize: bool = False,
    pure: bool = False,
    importance_matrix: Annotated[bool, Parameter(negative="")] = False,
    calibration: Path | None = None,
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
    max_kl
        Largest KL divergence from the model with which a variant is published; that of its type if not given.
    dry_run
        Show what each type would give, all types if none are named, and start nothing.
    wait
        Wait until the job has ended, and show the variants.
    """
    wanted = [each.strip() for each in types.split(",") if each.strip()]
    if not wanted and not dry_run:
        raise CommandError(
            "which types are to be made?",
            hint=f"llamesh quantize {model} --types Q4_K_M,Q8_0; --dry-run shows all",
            code=Exit.USAGE,
        )
    words = calibration_text(calibration) if calibration else ""
    measured = importance_matrix or calibration is not None
    with quant_connected() as mesh:
        with quantisable(model, mesh, kept=not dry_run) as source:
            if dry_run:
                found = mesh.quant.estimate(
                    source, wanted, allow_requantize=allow_requantize, importance_matrix=measured
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
                max_kl_divergence=max_kl,
            )
        if not wait:
            show_one(job, output, JOB)
            return Exit.OK
        return _waited(mesh, job.job_id, output)


def _estimated(found: EstimateQuantJobResponse, output: Output) -> int:
    """Show an estimate. A job that would be refused is an error."""
    show_list(found.types, output, ESTIMATE)
    if found.HasField("refusal"):
        raise CommandError(text(found.refusal.message), hint=found.refusal.remedy)
    free = f"{size(found.free_bytes)} are free" if found.free_bytes else "on a volume of its own"
    note(f"at most {size(found.needed_bytes)} of disk while it runs, {free}")
    return Exit.OK


def _waited(mesh: Client, job_id: str, output: Output) -> int:
    """Wait for a job and show what it has published. Ctrl-C ends the waiting only, and says how to go on."""
    try:
        job = mesh.quant.wait(job_id, JobProgress())
    except KeyboardInterrupt:
        note(f"the job {job_id} goes on: `llamesh jobs` shows it, `llamesh jobs cancel {job_id}` ends it")
        raise
    made = [model for model in mesh.quant.variants() if model.job_id == job_id]
    if made:
        show_list(made, output, VARIANT)
    if _state(job) == "SUCCEEDED":
        return Exit.OK
    failed = [f"{kind_of(step)} {step.type}: {text(step.error.message)}" for step in job.steps if step.error.reason]
    raise CommandError(
        f"the job {job_id} is {_state(job)}", parts=failed, hint=job.error.remedy or f"llamesh jobs retry {job_id}"
    )


@jobs.default
def show_jobs(*, output: Output = "table") -> None:
    """List the jobs, newest first."""
    list_jobs(output=output)


@jobs.command(name="ls", alias="list")
def list_jobs(*, output: Output = "table") -> None:
    """List the jobs, newest first."""
    with quant_connected() as mesh:
        show_list(mesh.quant.jobs(), output, JOB)


@jobs.command
def show(job: JobId, *, output: Output = "table") -> None:
    """Show a job and its steps, and what a failed step wrote last."""
    with quant_connected() as mesh:
        found = mesh.quant.job(job)
        if output != "table":
            show_one(found, output, JOB)
            return
        show_one(found, output, JOB)
        show_list(found.steps, output, STEP)
        for step in found.steps:
            if step.error.reason and step.log:
                note(text(step.log))


@jobs.command
def cancel(job: JobId, *, output: Output = "table") -> None:
    """Stop a job; variants that are published stay."""
    with quant_connected() as mesh:
        show_one(mesh.quant.cancel(job), output, JOB)


@jobs.command
def retry(job: JobId, *, wait: bool = False, output: Output = "table") -> int:
    """Start a job again that ended without all its types.

    Parameters
    ----------
    wait
        Wait until the job has ended, and show the variants.
    """
    with quant_connected() as mesh:
        again = mesh.quant.retry(job)
        if wait:
            return _waited(mesh, job, output)
        show_one(again, output, JOB)
        return Exit.OK


@jobs.command
def rm(job: JobId, /, *jobs: JobId) -> int:
    """Remove records of jobs that have ended; variants that they published stay."""
    from llamesh.cli.several import for_each

    with connected() as mesh:

        def remove(name: str) -> None:
            with calls_quant(mesh):
                note(f"removed {mesh.quant.delete(name).job_id}")

        return for_each([job, *jobs], remove)


@variants.default
def show_variants(*, output: Output = "table") -> None:
    """List the published variants."""
    list_variants(output=output)


@variants.command(name="ls", alias="list")
def list_variants(*, output: Output = "table") -> None:
    """List the published variants."""
    with quant_connected() as mesh:
        show_list(mesh.quant.variants(), output, VARIANT)


@variants.command(name="rm")
def rm_variant(variant: VariantId, /, *variants: VariantId) -> int:
    """Remove variants from the Quant service; a copy that was downloaded stays."""
    from llamesh.cli.several import for_each

    with connected() as mesh:

        def remove(name: str) -> None:
            with calls_quant(mesh):
                gone = mesh.quant.delete_variant(name)
            note(f"removed {gone.model_uuid} ({size(gone.size_bytes)})")

        return for_each([variant, *variants], remove)
