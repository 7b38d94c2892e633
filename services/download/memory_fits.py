"""Whether models fit the machines of the mesh: asks the controller for memory, and the contract service for estimates.

Invariant: a member that does not answer within ASK_SECONDS costs the answer that it would have given, and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from llamesh.kit.channels import asking, call_options
from llamesh.kit.errors import MeshError
from llamesh.kit.logs import log
from llamesh.v1 import contract_pb2, contract_pb2_grpc, controller_pb2, controller_pb2_grpc
from llamesh.v1.download_pb2 import HubFit

ASK_SECONDS = 3.0
"""Deadline of each question in seconds."""


@dataclass(frozen=True, slots=True)
class MeshMemory:
    """Bytes that one engine may have on the best machine: now, and if no other engine runs. 0: unknown."""

    free: int = 0
    total: int = 0

    def fit(self, needed: int) -> HubFit.ValueType:
        """Return whether an engine that needs so many bytes fits; 0: unknown."""
        if not needed or not self.total:
            return HubFit.HUB_FIT_UNSPECIFIED
        if needed <= self.free:
            return HubFit.HUB_FIT_NOW
        return HubFit.HUB_FIT_IF_OTHERS_STOP if needed <= self.total else HubFit.HUB_FIT_NO


class MemoryFits:
    """Client of the controller and the contract service. `reserve` is the memory in bytes that engines never get."""

    def __init__(
        self,
        controller: controller_pb2_grpc.ControllerServiceAsyncStub,
        contract: contract_pb2_grpc.ContractServiceAsyncStub,
        reserve: int,
    ) -> None:
        self._controller = controller
        self._contract = contract
        self._reserve = reserve

    async def memory(self) -> MeshMemory:
        """Return the memory of the mesh."""
        try:
            with asking("controller"):
                request = controller_pb2.GetCapacityRequest()
                nodes = (await self._controller.GetCapacity(request, **call_options(ASK_SECONDS))).nodes
        except MeshError as error:
            log.warning("the memory of the machines is not known", error=str(error))
            return MeshMemory()
        return MeshMemory(
            max((node.free_bytes for node in nodes), default=0),
            max((node.total_bytes - self._reserve for node in nodes), default=0),
        )

    async def estimates(self, models: Collection[str]) -> Mapping[str, int]:
        """Return the bytes that an engine of each of these models of the catalogue takes. Models without an estimate are left out."""
        found = await asyncio.gather(*map(self._estimate, models))
        return {model_uuid: needed for model_uuid, needed in zip(models, found, strict=True) if needed}

    async def _estimate(self, model_uuid: str) -> int:
        request = contract_pb2.EstimateMemoryRequest(model_uuid=model_uuid)
        try:
            with asking("contract"):
                estimate = await self._contract.EstimateMemory(request, **call_options(ASK_SECONDS))
        except MeshError as error:
            log.warning("the memory of a model is not known", model_uuid=model_uuid, error=str(error))
            return 0
        return estimate.weights_bytes + estimate.kv_cache_bytes + estimate.overhead_bytes
