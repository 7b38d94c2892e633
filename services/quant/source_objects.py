"""The objects of a job's source: pods and other machines read them from the bucket of the download service themselves."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from llamesh.kit.channels import asking, call_options
from llamesh.kit.errors import MeshError, Reason
from llamesh.v1.download_pb2 import ListModelObjectsRequest
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub
from llamesh.v1.model_pb2 import MODEL_FILE_ROLE_WEIGHTS, Model
from services.quant.workspace import StoredPart


class SourceObjects:
    """Asks the download service of this mesh for the objects of models."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._catalogue = CatalogueServiceStub(channel)

    async def find(self, model_uuid: str, sha256: str) -> tuple[Model, Sequence[StoredPart]]:
        """Return a model, and the objects of its weights in their order.

        Raises the errors of ListModelObjects, and CONTENT_MISMATCH if the model is another one than that of the digest.
        """
        with asking("download"):
            request = ListModelObjectsRequest(model_uuid=model_uuid)
            found = await self._catalogue.ListModelObjects(request, **call_options())
        check_same(found.model, sha256)
        return found.model, [
            StoredPart(key, file.size_bytes, file.sha256)
            for file, key in zip(found.model.files, found.object_keys, strict=True)
            if file.role == MODEL_FILE_ROLE_WEIGHTS
        ]


def check_same(model: Model, sha256: str) -> None:
    """Raise CONTENT_MISMATCH if a model of the catalogue is not the one that the job was submitted with."""
    if model.sha256 != sha256:
        raise MeshError(
            Reason.ERROR_REASON_CONTENT_MISMATCH,
            f"the model {model.model_uuid} was replaced since the job was submitted",
            {"modelUuid": model.model_uuid},
        )
