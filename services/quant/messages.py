"""Encoders: rows of the Quant service as messages of quant.proto."""

from __future__ import annotations

from urllib.parse import unquote

from llamesh.kit.errors import Reason, spec_of
from llamesh.v1.quant_pb2 import (
    QuantError,
    QuantJob,
    QuantJobState,
    QuantModel,
    QuantOptions,
    QuantReport,
    QuantStep,
    QuantStepKind,
    QuantStepState,
)
from services.quant.jobs import Job
from services.quant.states import StepState
from services.quant.step_process import StepProgress
from services.quant.submitters import REASONS
from services.quant.tables import QuantModelRow, QuantStepRow


def job_message(job: Job, running: StepProgress | None = None, *, logs: bool = False) -> QuantJob:
    """Encode a job. `running`, if given, is newer than the row of the running step. `logs` adds the steps' last lines."""
    row = job.row
    message = QuantJob(
        job_id=row.job_id,
        model_uuid=row.model_uuid,
        name=row.name,
        types=row.types,
        options=QuantOptions(
            allow_requantize=row.allow_requantize,
            pure=row.pure,
            importance_matrix=row.importance_matrix and not row.matrix_source,
            importance_matrix_source=_file_name(row.matrix_source),
        ),
        state=QuantJobState.Value(f"QUANT_JOB_STATE_{row.state}"),
        steps=[_step_message(step, running, logs=logs) for step in job.steps],
        owner=row.owner,
        source=row.shown_source,
    )
    failed = [step for step in job.steps if step.error_reason]
    # The rights of a user end the whole job, after the failure of a type perhaps, and a retry needs another user.
    if shown := next((step for step in failed if step.error_reason in REASONS), failed[0] if failed else None):
        message.error.CopyFrom(_error_message(shown))
    message.create_time.FromDatetime(row.create_time)
    message.update_time.FromDatetime(row.update_time)
    return message


def _file_name(address: str) -> str:
    """Return the name of the file at an address: not every caller may know the paths of this machine."""
    return unquote(address).rpartition("/")[2]


def _step_message(step: QuantStepRow, running: StepProgress | None, *, logs: bool) -> QuantStep:
    message = QuantStep(
        kind=QuantStepKind.Value(f"QUANT_STEP_KIND_{step.kind.upper()}"),
        type=step.type,
        state=QuantStepState.Value(f"QUANT_STEP_STATE_{step.state}"),
        done=step.done,
        total=step.total,
        tries=step.tries,
        log=step.log if logs else "",
    )
    if running is not None and step.state == StepState.RUNNING:
        message.done, message.total = running.done, running.total
    if step.error_reason:
        message.error.CopyFrom(_error_message(step))
    if step.start_time:
        message.start_time.FromDatetime(step.start_time)
    if step.end_time:
        message.end_time.FromDatetime(step.end_time)
    return message


def _error_message(step: QuantStepRow) -> QuantError:
    remedy = spec_of(Reason.Value(f"ERROR_REASON_{step.error_reason}")).remedy
    return QuantError(reason=step.error_reason, message=step.error_message, remedy=remedy)


def model_message(row: QuantModelRow, bucket: str) -> QuantModel:
    """Encode a published variant."""
    message = QuantModel(
        model_uuid=row.model_uuid,
        name=row.name,
        bucket=bucket,
        object_key=row.object_key,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        quantisation=row.quantisation,
        source_model_uuid=row.source_model_uuid,
        source_sha256=row.source_sha256,
        source=row.source,
        job_id=row.job_id,
        report=QuantReport(**row.report),
    )
    message.create_time.FromDatetime(row.create_time)
    return message
