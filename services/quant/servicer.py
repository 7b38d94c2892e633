"""The Quant service's calls: decode, call the domain, encode."""

# ruff: noqa: N802 - methods have the names of the contract

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from llamesh.kit.calls import Context
from llamesh.kit.config import Settings
from llamesh.kit.identity import caller
from llamesh.kit.pages import Pages
from llamesh.v1.quant_pb2 import (
    CancelQuantJobRequest,
    CreateQuantJobRequest,
    DeleteQuantJobRequest,
    DeleteQuantModelRequest,
    EstimateQuantJobRequest,
    EstimateQuantJobResponse,
    GetQuantJobRequest,
    GetQuantModelRequest,
    ListQuantJobsRequest,
    ListQuantJobsResponse,
    ListQuantModelsRequest,
    ListQuantModelsResponse,
    ListQuantSourcesRequest,
    ListQuantSourcesResponse,
    LocateQuantModelRequest,
    LocateQuantModelResponse,
    QuantJob,
    QuantModel,
    RetryQuantJobRequest,
    WatchQuantJobsRequest,
    WatchQuantJobsResponse,
)
from llamesh.v1.quant_pb2_grpc import QuantServiceServicer
from services.quant import submission
from services.quant.estimates import estimate
from services.quant.job_sources import JobSources
from services.quant.job_watches import JobWatches
from services.quant.jobs import Job, Jobs
from services.quant.messages import job_message, model_message
from services.quant.retries import Retries
from services.quant.states import JobState
from services.quant.tables import QuantJobRow
from services.quant.variants import Variants
from services.quant.worker import JobWorker


class QuantServicer(QuantServiceServicer):
    """llamesh.v1.QuantService."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        watches: JobWatches,
        variants: Variants,
        worker: JobWorker,
        sources: JobSources,
        pages: Pages,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._watches = watches
        self._variants = variants
        self._worker = worker
        self._sources = sources
        self._retries = Retries(settings, jobs, sources)
        self._pages = pages

    async def CreateQuantJob(self, request: CreateQuantJobRequest, context: Context) -> QuantJob:
        """See quant.proto."""
        settings, options, identity = self._settings, request.options, caller()
        owner_uid, digest = identity.uid, _digest(request)
        # Before the checks: the job itself may have taken the room that they ask for.
        if (repeated := await self._jobs.repeated(owner_uid, request.request_id, digest)) is not None:
            return self._message(repeated)
        submission.check_types(request.types, importance_matrix=submission.uses_matrix(options))
        submission.check_installation(options, settings)
        source = await self._sources.find(request.model_uuid, request.source, owner_uid)
        matrix = await self._sources.matrix(options.importance_matrix_source)
        model = source.model
        submission.check_source(model, allow_requantize=options.allow_requantize)
        needed = submission.needed_bytes(
            model, request.types, converted=source.converted, matrix_bytes=matrix.size_bytes
        )
        submission.check_space(needed, await self._space())
        await self._jobs.remove_surplus(owner_uid)
        job = await self._jobs.create(
            QuantJobRow(
                **source.recorded,
                source_sha256=model.sha256,
                name=request.name or submission.default_name(model.model_uuid),
                types=list(request.types),
                allow_requantize=options.allow_requantize,
                pure=options.pure,
                importance_matrix=submission.uses_matrix(options),
                matrix_source=options.importance_matrix_source,
                matrix_version=matrix.version,
                calibration_text=options.calibration_text,
                max_kl_divergence=request.max_kl_divergence,
                state=JobState.QUEUED,
                attempt=1,
                owner=identity.subject,
                owner_uid=owner_uid,
                requester_uid=owner_uid,
                request_id=request.request_id,
                request_digest=digest,
            )
        )
        self._worker.wake()
        return self._message(job)

    async def EstimateQuantJob(self, request: EstimateQuantJobRequest, context: Context) -> EstimateQuantJobResponse:
        """See quant.proto."""
        return estimate(
            await self._sources.find(request.model_uuid, request.source, caller().uid),
            request.types,
            request.options,
            self._settings,
            matrix_bytes=(await self._sources.matrix(request.options.importance_matrix_source)).size_bytes,
            free=await self._space(),
        )

    async def GetQuantJob(self, request: GetQuantJobRequest, context: Context) -> QuantJob:
        """See quant.proto."""
        return self._message(await self._jobs.get(request.job_id), logs=True)

    async def ListQuantJobs(self, request: ListQuantJobsRequest, context: Context) -> ListQuantJobsResponse:
        """See quant.proto."""
        jobs, token = await self._jobs.page(self._pages.query(request))
        return ListQuantJobsResponse(jobs=map(self._message, jobs), next_page_token=token)

    def WatchQuantJobs(self, request: WatchQuantJobsRequest, context: Context) -> AsyncIterator[WatchQuantJobsResponse]:
        """See quant.proto."""
        who = caller()
        return self._watches.watch(who.subject, who.uid, request.job_id)

    async def CancelQuantJob(self, request: CancelQuantJobRequest, context: Context) -> QuantJob:
        """See quant.proto."""
        job = await self._worker.end(request.job_id, lambda: self._jobs.cancel(request.job_id))
        self._worker.wake()
        return self._message(job)

    async def RetryQuantJob(self, request: RetryQuantJobRequest, context: Context) -> QuantJob:
        """See quant.proto."""
        job = await self._retries.retry(request.job_id, caller().uid)
        self._worker.wake()
        return self._message(job)

    async def DeleteQuantJob(self, request: DeleteQuantJobRequest, context: Context) -> QuantJob:
        """See quant.proto."""
        return self._message(await self._jobs.delete(request.job_id))

    async def GetQuantModel(self, request: GetQuantModelRequest, context: Context) -> QuantModel:
        """See quant.proto."""
        return model_message(await self._variants.get(request.model_uuid), self._settings.quant_minio_bucket)

    async def ListQuantModels(self, request: ListQuantModelsRequest, context: Context) -> ListQuantModelsResponse:
        """See quant.proto."""
        rows, token = await self._variants.page(self._pages.query(request))
        bucket = self._settings.quant_minio_bucket
        return ListQuantModelsResponse(models=[model_message(row, bucket) for row in rows], next_page_token=token)

    async def DeleteQuantModel(self, request: DeleteQuantModelRequest, context: Context) -> QuantModel:
        """See quant.proto."""
        return model_message(await self._variants.delete(request.model_uuid), self._settings.quant_minio_bucket)

    async def ListQuantSources(self, request: ListQuantSourcesRequest, context: Context) -> ListQuantSourcesResponse:
        """See quant.proto."""
        found = [source for row in await self._jobs.active() for source in (row.source, row.matrix_source)]
        return ListQuantSourcesResponse(sources=filter(None, found))

    async def LocateQuantModel(self, request: LocateQuantModelRequest, context: Context) -> LocateQuantModelResponse:
        """See quant.proto."""
        row, path = await self._variants.locate(request.model_uuid)
        return LocateQuantModelResponse(model=model_message(row, self._settings.quant_minio_bucket), path=path)

    async def _space(self) -> int | None:
        active = [row.job_id for row in await self._jobs.active()]
        return await asyncio.to_thread(submission.space_for_jobs, self._settings, active)

    def _message(self, job: Job, *, logs: bool = False) -> QuantJob:
        return job_message(job, self._worker.progress(job.row.job_id), logs=logs)


def _digest(request: CreateQuantJobRequest) -> str:
    """Return the digest of a request without its request_id."""
    fields = CreateQuantJobRequest()
    fields.CopyFrom(request)
    fields.ClearField("request_id")
    return hashlib.sha256(fields.SerializeToString(deterministic=True)).hexdigest()
