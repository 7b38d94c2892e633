"""Asks the download service for models and the controller for the memory of machines. No other module of this service calls them.

Invariant: an error of either is raised unchanged (MODEL_NOT_FOUND, SERVER_NOT_FOUND), and COMPONENT_UNAVAILABLE if one does not answer.
"""

from __future__ import annotations

from llamesh.kit.channels import asking, call_options
from llamesh.kit.holders import Holder
from llamesh.v1 import controller_pb2, controller_pb2_grpc, download_pb2, download_pb2_grpc
from llamesh.v1.model_pb2 import Model
from services.contract.policy import Machine


class Inventory:
    """Client of the download service and the controller."""

    def __init__(
        self,
        catalogue: download_pb2_grpc.CatalogueServiceAsyncStub,
        controller: controller_pb2_grpc.ControllerServiceAsyncStub,
    ) -> None:
        self._catalogue = catalogue
        self._controller = controller

    async def model(self, model_uuid: str) -> Model:
        """Return a model that is ready to serve. Raises MODEL_NOT_FOUND or MODEL_NOT_READY."""
        with asking("download"):
            return await self._catalogue.GetCatalogueModel(
                download_pb2.GetCatalogueModelRequest(model_uuid=model_uuid),
                **call_options(),
            )

    async def machines(self, model_uuid: str, without_server_uuid: str = "") -> list[Machine]:
        """Return the memory of each machine for a new engine of this model. A server in `without_server_uuid` counts as not running.

        The controller has already subtracted the reserve and the memory that declared servers may take. Raises SERVER_NOT_FOUND.
        """
        request = controller_pb2.GetCapacityRequest(without_server_uuid=without_server_uuid)
        with asking("controller"):
            if without_server_uuid:
                await self._controller.GetDeclaredServer(
                    controller_pb2.GetDeclaredServerRequest(server_uuid=without_server_uuid),
                    **call_options(),
                )
            capacity = await self._controller.GetCapacity(request, **call_options())
        return [
            Machine(
                node.free_bytes,
                sum(each.shared_bytes for each in node.shared_weights if each.model_uuid == model_uuid),
                tuple(Holder(each.server_uuid, each.model_name, each.freed_bytes) for each in node.holders),
            )
            for node in capacity.nodes
        ]
