# ruff: noqa: ASYNC109 a timeout here is the deadline of a gRPC call, which the server learns of
"""The Quant service: jobs that make quantised variants of a model, and the models that they have published."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from llamesh.client.aio.part import AsyncPart
from llamesh.client.aio.watching import is_full, watched
from llamesh.client.quant_presence import asking_quant
from llamesh.client.references import Model, job_source, matrix_address
from llamesh.client.services import QUANT
from llamesh.client.transport import AsyncTransport
from llamesh.v1 import quant_pb2

ENDED = frozenset(
    {
        quant_pb2.QUANT_JOB_STATE_SUCCEEDED,
        quant_pb2.QUANT_JOB_STATE_PARTIAL,
        quant_pb2.QUANT_JOB_STATE_FAILED,
        quant_pb2.QUANT_JOB_STATE_CANCELLED,
    }
)
"""States of a job that has ended."""


class AsyncQuant(AsyncPart):
    """Calls of the Quant service. NotImplemented, with the remedy, from a mesh without this service."""

    def __init__(self, transport: AsyncTransport) -> None:
        super().__init__(transport)
        self._call = self._called

    async def _called(self, method: str, request: Message, answer: Any, timeout: float | None = None) -> Any:
        with asking_quant():
            return await self._transport.call(method, request, answer, timeout)

    async def create(
        self,
        model: Model,
        types: Sequence[str],
        *,
        name: str = "",
        allow_requantize: bool = False,
        pure: bool = False,
        importance_matrix: bool = False,
        calibration_text: str = "",
        importance_matrix_source: str | Path = "",
        max_kl_divergence: float = 0.0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> quant_pb2.QuantJob:
        """Start a job that quantises a model of the catalogue to these types, or the checkpoint at an address, which is converted first.

        An importance matrix is measured with `calibration_text`, or with a text of the mesh if it is empty; or it is the file
        `importance_matrix_source` of llama-imatrix, in a folder of the mesh's machine that models may be imported from.
        """
        request = quant_pb2.CreateQuantJobRequest(
            **job_source(model),
            types=types,
            name=name,
            options=quant_pb2.QuantOptions(
                allow_requantize=allow_requantize,
                pure=pure,
                importance_matrix=importance_matrix,
                calibration_text=calibration_text,
                importance_matrix_source=matrix_address(importance_matrix_source),
            ),
            max_kl_divergence=max_kl_divergence,
            request_id=request_id,
        )
        return await self._call(f"{QUANT}/CreateQuantJob", request, quant_pb2.QuantJob, timeout)

    async def estimate(
        self,
        model: Model,
        types: Sequence[str] = (),
        *,
        allow_requantize: bool = False,
        importance_matrix: bool = False,
        importance_matrix_source: str | Path = "",
        timeout: float | None = None,
    ) -> quant_pb2.EstimateQuantJobResponse:
        """Estimate a job without starting it, for all types that quantise if none are given. A refusal is returned, not raised."""
        request = quant_pb2.EstimateQuantJobRequest(
            **job_source(model),
            types=types,
            options=quant_pb2.QuantOptions(
                allow_requantize=allow_requantize,
                importance_matrix=importance_matrix,
                importance_matrix_source=matrix_address(importance_matrix_source),
            ),
        )
        return await self._call(f"{QUANT}/EstimateQuantJob", request, quant_pb2.EstimateQuantJobResponse, timeout)

    async def job(self, job_id: str, *, timeout: float | None = None) -> quant_pb2.QuantJob:
        """Return one job with the last output of its steps."""
        request = quant_pb2.GetQuantJobRequest(job_id=job_id)
        return await self._call(f"{QUANT}/GetQuantJob", request, quant_pb2.QuantJob, timeout)

    def jobs(self) -> AsyncIterator[quant_pb2.QuantJob]:
        """Yield all jobs, newest first."""
        request = quant_pb2.ListQuantJobsRequest()
        return self.pages(f"{QUANT}/ListQuantJobs", request, quant_pb2.ListQuantJobsResponse, "jobs")

    async def cancel(self, job_id: str, *, timeout: float | None = None) -> quant_pb2.QuantJob:
        """Stop a job."""
        request = quant_pb2.CancelQuantJobRequest(job_id=job_id)
        return await self._call(f"{QUANT}/CancelQuantJob", request, quant_pb2.QuantJob, timeout)

    async def retry(self, job_id: str, *, timeout: float | None = None) -> quant_pb2.QuantJob:
        """Restart a job that ended before it made all its types."""
        request = quant_pb2.RetryQuantJobRequest(job_id=job_id)
        return await self._call(f"{QUANT}/RetryQuantJob", request, quant_pb2.QuantJob, timeout)

    async def delete(self, job_id: str, *, timeout: float | None = None) -> quant_pb2.QuantJob:
        """Remove the record of a job that has ended."""
        request = quant_pb2.DeleteQuantJobRequest(job_id=job_id)
        return await self._call(f"{QUANT}/DeleteQuantJob", request, quant_pb2.QuantJob, timeout)

    async def watch(
        self, job_id: str = "", *, patient: bool = False, timeout: float | None = None
    ) -> AsyncIterator[quant_pb2.WatchQuantJobsResponse]:
        """Yield all jobs, then each change; with a `job_id` only that job, until its end or the removal of its record.

        After a lost connection the watch reconnects and begins with the present state. Raises DeadlineExceeded after `timeout` seconds,
        and the error of its last try if the mesh has not answered for `silence.max_seconds` of the client.
        With `patient` a watch waits for room if this user has as many open as one may have; else it raises TooManyWatches.
        """
        request = quant_pb2.WatchQuantJobsRequest(job_id=job_id)

        def begin(deadline: float | None) -> AsyncIterator[quant_pb2.WatchQuantJobsResponse]:
            return self._transport.stream(
                f"{QUANT}/WatchQuantJobs", request, quant_pb2.WatchQuantJobsResponse, deadline
            )

        with asking_quant():
            async for event in watched(
                begin, timeout, self._transport.silence, lambda error: patient and is_full(error)
            ):
                kind = event.WhichOneof("event")
                if kind != "heartbeat":
                    yield event
                if job_id and (kind == "removed_job_id" or event.job.state in ENDED):
                    return

    async def wait(
        self,
        job_id: str,
        on_change: Callable[[quant_pb2.QuantJob], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> quant_pb2.QuantJob:
        """Wait until a job has ended, in any state, and return it; DeadlineExceeded after `timeout` seconds.

        `on_change` is called with the job as it is, then after each change.
        """
        job = quant_pb2.QuantJob()
        async for event in self.watch(job_id, patient=True, timeout=timeout):
            if event.WhichOneof("event") == "job":
                job = event.job
                if on_change:
                    on_change(job)
        # The watch also ends if the record is removed; then nothing can be said but that there is no such job.
        return job if job.state in ENDED else await self.job(job_id)

    def variants(self) -> AsyncIterator[quant_pb2.QuantModel]:
        """Yield the models that the service has published, ordered by time."""
        request = quant_pb2.ListQuantModelsRequest()
        return self.pages(f"{QUANT}/ListQuantModels", request, quant_pb2.ListQuantModelsResponse, "models")

    async def variant(self, model_uuid: str, *, timeout: float | None = None) -> quant_pb2.QuantModel:
        """Return one published model with the results of its checks."""
        request = quant_pb2.GetQuantModelRequest(model_uuid=model_uuid)
        return await self._call(f"{QUANT}/GetQuantModel", request, quant_pb2.QuantModel, timeout)

    async def delete_variant(self, model_uuid: str, *, timeout: float | None = None) -> quant_pb2.QuantModel:
        """Remove a published model from the service's bucket."""
        request = quant_pb2.DeleteQuantModelRequest(model_uuid=model_uuid)
        return await self._call(f"{QUANT}/DeleteQuantModel", request, quant_pb2.QuantModel, timeout)
