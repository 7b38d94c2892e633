"""What there is, as the siblings that own it say: models and the memory of machines. The only place where this service asks them.

Invariant: a sibling's refusal is raised as it is (MODEL_NOT_FOUND, SERVER_NOT_FOUND), its silence as COMPONENT_UNAVAILABLE.
"""

from __future__ import annotations

from llamesh.kit.channels import DEADLINE, asking, passed_on
from llamesh.v1 import controller_pb2, controller_pb2_grpc, download_pb2, download_pb2_grpc
from llamesh.v1.model_pb2 import Model
from llamesh.v1.server_pb2 import Server


class Inventory:
    """Models, declared servers and memory."""

    def __init__(
        self,
        catalogue: download_pb2_grpc.CatalogueServiceAsyncStub,
        controller: controller_pb2_grpc.ControllerServiceAsyncStub,
        *,
        reserve_bytes: int,
    ) -> None:
        self._catalogue = catalogue
        self._controller = controller
        self._reserve_bytes = reserve_bytes

    async def model(self, model_uuid: str) -> Model:
        """A model that is ready; MODEL_NOT_FOUND or MODEL_NOT_READY."""
        with asking("download"):
            return await self._catalogue.GetCatalogueModel(
                download_pb2.GetCatalogueModelRequest(model_uuid=model_uuid),
                timeout=DEADLINE,
                metadata=passed_on(),
                wait_for_ready=True,
            )

    async def server(self, server_uuid: str) -> Server:
        """A declared server; SERVER_NOT_FOUND."""
        with asking("controller"):
            return await self._controller.GetDeclaredServer(
                controller_pb2.GetDeclaredServerRequest(server_uuid=server_uuid),
                timeout=DEADLINE,
                metadata=passed_on(),
                wait_for_ready=True,
            )

    async def free_bytes(self) -> list[int]:
        """Memory of each machine that a new engine could have: neither promised to a declared server nor held in reserve."""
        with asking("controller"):
            capacity = await self._controller.GetCapacity(
                controller_pb2.GetCapacityRequest(), timeout=DEADLINE, metadata=passed_on(), wait_for_ready=True
            )
        return [max(node.available_bytes - node.promised_bytes - self._reserve_bytes, 0) for node in capacity.nodes]
