"""Client of the Quant service of this mesh over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from llamesh.kit.channels import asking, call_options
from llamesh.kit.errors import MeshError, Reason
from llamesh.v1.quant_pb2 import ListQuantSourcesRequest, LocateQuantModelRequest
from llamesh.v1.quant_pb2_grpc import QuantServiceStub
from services.download.sources.quant_models import QuantModel
from services.download.sources.source import SourceError


async def sources_of_jobs(channel: grpc.aio.Channel) -> Sequence[str]:
    """Return the checkpoints of jobs that have not ended. Raises MeshError."""
    with asking("quant"):
        found = await QuantServiceStub(channel).ListQuantSources(ListQuantSourcesRequest(), **call_options())
    return found.sources


class QuantMember:
    """The member `quant`, which needs no token."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._quant = QuantServiceStub(channel)

    async def find(self, model_uuid: str) -> QuantModel:
        """See QuantModels."""
        try:
            with asking("quant"):
                found = await self._quant.LocateQuantModel(
                    LocateQuantModelRequest(model_uuid=model_uuid), **call_options()
                )
        except MeshError as error:
            status = 404 if error.reason == Reason.ERROR_REASON_MODEL_NOT_FOUND else 0
            transient = error.reason == Reason.ERROR_REASON_COMPONENT_UNAVAILABLE
            raise SourceError(
                error.message, status=status, transient=transient, retry_after=error.retry_after
            ) from error
        model = found.model
        return QuantModel(
            model.object_key,
            model.bucket,
            model.name,
            model.size_bytes or None,
            model.sha256,
            path=found.path,
            report=model.report if model.HasField("report") else None,
        )
