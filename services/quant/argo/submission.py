"""Submits the workflow of a job, and gives its pods the description of the job.

Idempotent: what is there already stays, so a submission that was interrupted is completed by the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamesh.kit.config import Settings
from services.quant.argo.cluster import Cluster
from services.quant.argo.pod_files import CALIBRATION as CALIBRATION_FILE
from services.quant.argo.pod_files import JOB_FILE
from services.quant.argo.workflow import JobPlan, config_map_of, manifest_of
from services.quant.job_spec import CALIBRATION, spec_of
from services.quant.jobs import Job, Jobs
from services.quant.plan import unpublished
from services.quant.source_objects import SourceObjects
from services.quant.states import StepKind
from services.quant.submission import needed_bytes
from services.quant.variants import Variants
from services.quant.workspace import StoredPart

_VOLUME_BYTES = 2 << 30
"""Bytes of a volume beside the files of a job: what the file system takes, and what the cache of models leaves free."""


class Submission:
    """Makes workflows."""

    def __init__(
        self, settings: Settings, jobs: Jobs, cluster: Cluster, sources: SourceObjects, variants: Variants
    ) -> None:
        self._settings = settings
        self._variants = variants
        self._jobs = jobs
        self._cluster = cluster
        self._sources = sources

    async def submit(self, job: Job, name: str, present: dict[str, Any] | None) -> dict[str, Any]:
        """Return the workflow of a job whose steps have not begun. `present`: the workflow, if it exists.

        Raises ClusterOutageError, ClusterRefusedError, STORE_UNAVAILABLE, and the errors of `SourceObjects.find`.
        """
        model, objects = await self._sources.find(job.row.model_uuid, job.row.source_sha256)
        workflow = present
        if workflow is None:
            for step in job.steps:
                if step.object_key:
                    # Of an earlier attempt. The row gets the key of the new one when its step begins.
                    await self._variants.remove_object(step.object_key)
            steps = [(StepKind(step.kind), step.type) for step in unpublished(job.steps)]
            types = list(dict.fromkeys(of_type for _, of_type in steps if of_type))
            plan = JobPlan(
                name=name,
                job_id=job.row.job_id,
                steps=steps,
                source_bytes=sum(each.size for each in objects),
                disk_bytes=needed_bytes(model, types) + _VOLUME_BYTES,
            )
            workflow = await self._cluster.submit(manifest_of(plan, self._settings))
        files = await self._files(job, objects)
        await self._cluster.keep(config_map_of(name, workflow["metadata"]["uid"], files, self._settings))
        return workflow

    async def _files(self, job: Job, objects: Sequence[StoredPart]) -> dict[str, str]:
        files = {JOB_FILE: spec_of(job, objects).written()}
        if job.row.importance_matrix:
            own = await self._jobs.calibration_text(job.row.job_id)
            files[CALIBRATION_FILE] = own or CALIBRATION.read_text(encoding="utf-8")
        return files
