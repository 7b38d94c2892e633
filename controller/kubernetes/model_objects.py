"""Cache of the objects of models, which pods fetch from the store themselves. The download service knows the objects.

A model that is downloaded again has other objects, so the known models are asked for again every LOOK_SECONDS. Invariant: the same objects
give the same paths, so the pods of a server are replaced only if its objects have changed.
"""

from __future__ import annotations

import grpc

from controller.kubernetes.pod_paths import model_folder
from controller.model_files import Availability, ModelFile, ModelFiles, ModelObject
from llamesh.background import BackgroundTask, Report
from llamesh.kit.channels import DEADLINE
from llamesh.v1.download_pb2 import ListModelObjectsRequest
from llamesh.v1.model_pb2 import MODEL_FILE_ROLE_ADAPTER, MODEL_FILE_ROLE_PROJECTOR, MODEL_FILE_ROLE_WEIGHTS
from llamesh.v1.model_pb2 import ModelFile as StoredFile

LOOK_SECONDS = 60.0


class ModelObjects(ModelFiles):
    """See ModelFiles; a path is one in the pod of an engine."""

    def __init__(self, download: grpc.aio.Channel, report: Report) -> None:
        super().__init__(download)
        self._looking = BackgroundTask(
            "ask for the objects of models again", self._look, report, every=LOOK_SECONDS, immediately=False
        )

    def start(self) -> None:
        """Start to ask again."""
        self._looking.start()

    async def close(self) -> None:
        """Cancel all requests."""
        await self._looking.close()
        await super().close()

    async def _located(self, model_uuid: str) -> ModelFile:
        request = ListModelObjectsRequest(model_uuid=model_uuid)
        found = await self.catalogue.ListModelObjects(request, timeout=DEADLINE)
        parts = sum(file.role == MODEL_FILE_ROLE_WEIGHTS for file in found.model.files)
        paths = [
            f"{model_folder(model_uuid)}/{_name(file, number, parts)}"
            for number, file in enumerate(found.model.files, 1)
        ]
        known = list(zip(found.model.files, paths, strict=True))
        return ModelFile(
            Availability.AVAILABLE,
            path=paths[0],
            context_length=found.model.gguf.context_length,
            projector=next((path for file, path in known if file.role == MODEL_FILE_ROLE_PROJECTOR), ""),
            adapters={file.name: path for file, path in known if file.role == MODEL_FILE_ROLE_ADAPTER},
            files=tuple(paths),
            objects=tuple(
                ModelObject(key, file.size_bytes, path)
                for (file, path), key in zip(known, found.object_keys, strict=True)
            ),
        )

    def _is_current(self, known: ModelFile) -> bool:
        return True

    async def _look(self) -> None:
        for model_uuid in self.available():
            self.ask_again(model_uuid)


def _name(file: StoredFile, number: int, parts: int) -> str:
    """Return the name under which llama.cpp opens a file: it finds the parts of a model by their names."""
    if file.role == MODEL_FILE_ROLE_PROJECTOR:
        return "projector.gguf"
    if file.role == MODEL_FILE_ROLE_ADAPTER:
        return f"adapter-{file.name}.gguf"
    return "model.gguf" if parts == 1 else f"model-{number:05d}-of-{parts:05d}.gguf"
