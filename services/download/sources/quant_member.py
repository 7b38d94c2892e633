"""The Quant service of this mesh, asked over gRPC."""

from __future__ import annotations

import grpc

from llamesh.kit.errors import Reason, error_from_rpc
from llamesh.v1.quant_pb2 import LocateQuantModelRequest
from llamesh.v1.quant_pb2_grpc import QuantServiceStub
from services.download.sources.quant_models import QuantModel
from services.download.sources.source import SourceError

DEADLINE = 10.0
"""Seconds for one call."""


class QuantMember:
    """The member `quant`, which needs no token."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._quant = QuantServiceStub(channel)

    async def find(self, model_uuid: str) -> QuantModel:
        """See QuantModels."""
        request = LocateQuantModelRequest(model_uuid=model_uuid)
        try:
            found = await self._quant.LocateQuantModel(request, timeout=DEADLINE, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            reason = error_from_rpc(error, "quant")
            away = reason.reason == Reason.ERROR_REASON_COMPONENT_UNAVAILABLE
            raise SourceError(reason.message, passing=away, retry_after=reason.retry_after) from error
        model = found.model
        return QuantModel(
            model.object_key, model.bucket, model.name, model.size_bytes or None, model.sha256, path=found.path
        )
