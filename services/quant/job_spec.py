"""The description of a job that the programs of its steps read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.quant.jobs import Job
from services.quant.workspace import JobSpec, StoredPart

CALIBRATION = Path(__file__).with_name("calibration.txt")
"""The text that importance matrices are measured with, unless a job has its own. No variant is verified with it."""


def spec_of(job: Job, objects: Sequence[StoredPart] = ()) -> JobSpec:
    """Return the description of a job. `objects`: the objects of its source, for programs that read the bucket themselves."""
    row = job.row
    return JobSpec(
        job_id=row.job_id,
        name=row.name,
        model_uuid=row.model_uuid,
        source_sha256=row.source_sha256,
        source=row.source,
        shown_source=row.shown_source,
        objects=tuple(objects),
        allow_requantize=row.allow_requantize,
        pure=row.pure,
        importance_matrix=row.importance_matrix,
        matrix_source=row.matrix_source,
        matrix_version=row.matrix_version,
        max_kl_divergence=row.max_kl_divergence,
    )
