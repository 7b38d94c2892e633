"""A labelled fake of the Quant service: answers from memory, for the command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from llamesh.v1 import quant_pb2, quant_pb2_grpc
from tests.contract.fakes import refuse

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = (
    quant_pb2.QUANT_JOB_STATE_QUEUED,
    quant_pb2.QUANT_JOB_STATE_RUNNING,
    quant_pb2.QUANT_JOB_STATE_SUCCEEDED,
    quant_pb2.QUANT_JOB_STATE_FAILED,
    quant_pb2.QUANT_JOB_STATE_CANCELLED,
)


class FakeQuantService(quant_pb2_grpc.QuantServiceServicer):
    """Has one job, whose states a watch tells one after the other, and the variants that it is given."""

    def __init__(self) -> None:
        self.states: list[quant_pb2.QuantJob] = [quant_pb2.QuantJob(job_id="job_1", state=QUEUED)]
        self.variants: list[str] = []
        self.refusal: tuple[Any, ...] | None = None
        """What `refuse` is given, for every call that starts or estimates a job."""
        self.requests: list[quant_pb2.CreateQuantJobRequest] = []
        self.calls: list[str] = []

    def CreateQuantJob(self, request: Any, context: Any) -> quant_pb2.QuantJob:
        if self.refusal:
            refuse(context, *self.refusal)
        self.requests.append(request)
        return self.states[0]

    def EstimateQuantJob(self, request: Any, context: Any) -> quant_pb2.EstimateQuantJobResponse:
        if self.refusal:
            refuse(context, *self.refusal)
        return quant_pb2.EstimateQuantJobResponse()

    def GetQuantJob(self, request: Any, context: Any) -> quant_pb2.QuantJob:
        return self.states[-1]

    def WatchQuantJobs(self, request: Any, context: Any) -> Iterator[quant_pb2.WatchQuantJobsResponse]:
        for state in self.states:
            yield quant_pb2.WatchQuantJobsResponse(job=state)

    def CancelQuantJob(self, request: Any, context: Any) -> quant_pb2.QuantJob:
        self.calls.append("cancel")
        return self.states[-1]

    def RetryQuantJob(self, request: Any, context: Any) -> quant_pb2.QuantJob:
        self.calls.append("retry")
        return self.states[-1]

    def DeleteQuantModel(self, request: Any, context: Any) -> quant_pb2.QuantModel:
        return self.GetQuantModel(request, context)

    def ListQuantModels(self, request: Any, context: Any) -> quant_pb2.ListQuantModelsResponse:
        models = [quant_pb2.QuantModel(model_uuid=uuid, job_id="job_1") for uuid in self.variants]
        return quant_pb2.ListQuantModelsResponse(models=models)

    def GetQuantModel(self, request: Any, context: Any) -> quant_pb2.QuantModel:
        if request.model_uuid not in self.variants:
            refuse(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", f"no model {request.model_uuid}")
        return quant_pb2.QuantModel(model_uuid=request.model_uuid)
