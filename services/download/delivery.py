"""Delivers the files of a model to this machine, as llama.cpp opens them.

A model in parts gets a folder of links (`part_links`); a single file is opened where it is. Invariant: a returned path stays while the
model's record stays, except that a folder of links may be removed with the model's earlier objects.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from llamesh.kit.errors import MeshError, Reason
from services.download.catalogue import Catalogue
from services.download.integrity import Integrity
from services.download.part_links import PartLinks
from services.download.sources import FileRole
from services.download.tables import ModelRow

SWEEP_SECONDS = 60.0
"""Seconds between two removals of the links of models that are gone."""


class Delivery:
    """Delivers models. `links` are those of this machine."""

    def __init__(self, integrity: Integrity, catalogue: Catalogue, links: PartLinks) -> None:
        self._integrity = integrity
        self._catalogue = catalogue
        self._links = links
        self._linking = asyncio.Lock()

    async def locate(self, model_uuid: str) -> tuple[list[Path], ModelRow]:
        """Return the paths of a model's files, in their order. Raises the errors of `Integrity.locate`, and STORE_UNAVAILABLE."""
        paths, model = await self._integrity.locate(model_uuid)
        parts = [path for file, path in zip(model.files, paths, strict=True) if file.role == FileRole.WEIGHTS]
        if len(parts) == 1:
            return paths, model
        try:
            async with self._linking:
                return [*await asyncio.to_thread(self._links.make, model_uuid, parts), *paths[len(parts) :]], model
        except OSError as error:
            words = f"{model_uuid}: its parts cannot be linked: {error.strerror}"
            raise MeshError(Reason.ERROR_REASON_STORE_UNAVAILABLE, words, {"modelUuid": model_uuid}) from error

    async def sweep(self) -> None:
        """Remove the links of models that are gone."""
        # In this order: links are younger than their model.
        linked = await asyncio.to_thread(self._links.models)
        gone = linked - await self._catalogue.existing(linked) if linked else set()
        for model_uuid in gone:
            await asyncio.to_thread(self._links.remove, model_uuid)
