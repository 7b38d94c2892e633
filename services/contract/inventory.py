"""What there is, as the siblings that own it say: models and the memory of machines. The only place where this service asks them.

Invariant: a sibling's refusal is raised as it is (MODEL_NOT_FOUND, SERVER_NOT_FOUND), its silence as COMPONENT_UNAVAILABLE.
"""

from __future__ import annotations

from llamesh.kit.channels import DEADLINE, asking, forwarded_metadata
from llamesh.kit.holders import Holder
from llamesh.v1 import controller_pb2, controller_pb2_grpc, download_pb2, download_pb2_grpc
from llamesh.v1.model_pb2 import Model
from services.contract.policy import Machine


class Inventory:
    """Models, and memory of machines."""

    def __init__(
        self,
        catalogue: download_pb2_grpc.CatalogueServiceAsyncStub,
        controller: controller_pb2_grpc.ControllerServiceAsyncStub,
    ) -> None:
        self._catalogue = catalogue
        self._controller = controller

    async def model(self, model_uuid: str) -> Model:
        """A model that is ready; MODEL_NOT_FOUND or MODEL_NOT_READY."""
        with asking("download"):
            return await self._catalogue.GetCatalogueModel(
                download_pb2.GetCatalogueModelRequest(model_uuid=model_uuid),
                timeout=DEADLINE,
                metadata=forwarded_metadata(),
                wait_for_ready=True,
            )

    async def machines(self, model_uuid: str, without_server_uuid: str = "") -> list[Machine]:
        """What each machine has for a new engine of this model, in place of a server if one is named; SERVER_NOT_FOUND for that one.

        What declared servers may take and the reserve are subtracted already: the controller, which knows what runs, does so.
        """
        request = controller_pb2.GetCapacityRequest(without_server_uuid=without_server_uuid)
        with asking("controller"):
            if without_server_uuid:
                await self._controller.GetDeclaredServer(
                    controller_pb2.GetDeclaredServerRequest(server_uuid=without_server_uuid),
                    timeout=DEADLINE,
                    metadata=forwarded_metadata(),
                    wait_for_ready=True,
                )
            capacity = await self._controller.GetCapacity(
                request, timeout=DEADLINE, metadata=forwarded_metadata(), wait_for_ready=True
            )
        return [
            Machine(
                node.free_bytes,
                sum(each.shared_bytes for each in node.shared_weights if each.model_uuid == model_uuid),
                tuple(Holder(each.server_uuid, each.model_name, each.freed_bytes) for each in node.holders),
            )
            for node in capacity.nodes
        ]
