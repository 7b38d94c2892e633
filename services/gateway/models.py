"""Models, from the catalogue of the download service, which also decides whether one may be deleted."""

from __future__ import annotations

from llamesh.kit.channels import asking, call_options
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2
from services.gateway.members import Members


class Models:
    """Models that are complete and can be served."""

    def __init__(self, members: Members) -> None:
        self._catalogue = members.catalogue

    async def page(self, request: gateway_pb2.ListModelsRequest) -> download_pb2.ListCatalogueModelsResponse:
        """Return a page of the models that a request asks for: the catalogue's request has the same fields."""
        fields = {field.name: value for field, value in request.ListFields()}
        with asking("download"):
            return await self._catalogue.ListCatalogueModels(
                download_pb2.ListCatalogueModelsRequest(**fields), **call_options()
            )

    async def get(self, model_uuid: str) -> model_pb2.Model:
        """Return a model; MODEL_NOT_FOUND, or MODEL_NOT_READY while it is downloaded."""
        request = download_pb2.GetCatalogueModelRequest(model_uuid=model_uuid)
        with asking("download"):
            return await self._catalogue.GetCatalogueModel(request, **call_options())

    async def change_aliases(self, request: gateway_pb2.ChangeModelAliasesRequest) -> model_pb2.Model:
        """Give a model further names and take some away."""
        change = download_pb2.ChangeCatalogueModelAliasesRequest(
            model_uuid=request.model_uuid, add=request.add, remove=request.remove
        )
        with asking("download"):
            return await self._catalogue.ChangeCatalogueModelAliases(change, **call_options())

    async def delete(self, model_uuid: str) -> model_pb2.Model:
        """Delete a model; MODEL_IN_USE names the servers that use it."""
        request = download_pb2.DeleteCatalogueModelRequest(model_uuid=model_uuid)
        with asking("download"):
            return await self._catalogue.DeleteCatalogueModel(request, **call_options())
