"""Where the models' files are: asked of the download service, which may have to fetch one first, and remembered.

Invariant: a path that is given exists now. Asking never blocks: the answer is a change that the asker is told of.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from llamesh.kit.channels import asking
from llamesh.kit.errors import MeshError, Reason
from llamesh.v1.download_pb2 import LocateModelRequest
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub

LOCATE_SECONDS = 3600.0
"""A large model that lies in a distant store takes its time."""
RETRY_SECONDS = 2.0
"""Between two questions while the answer is no."""


class Place(enum.Enum):
    """Whether a model's file is there."""

    UNKNOWN = "unknown"
    LOCATING = "locating"
    AVAILABLE = "available"
    MISSING = "missing"
    """The catalogue has no such model."""
    UNREACHABLE = "unreachable"
    """The download service cannot say, or cannot fetch it."""


@dataclass(frozen=True, slots=True)
class ModelFact:
    """What is known of a model."""

    place: Place
    message: str = ""
    path: str = ""
    context_length: int = 0
    """Tokens it was trained for; 0: not known."""
    asked_at: float = 0.0
    """When the answer came, on the monotonic clock."""


_NOTHING = ModelFact(Place.UNKNOWN)


class Models:
    """What the controller knows of models."""

    def __init__(
        self,
        download: grpc.aio.Channel,
        on_change: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`download` leads to the download service; `on_change(model_uuid)` is called when an answer has come."""
        self._catalogue = CatalogueServiceStub(download)
        self._on_change = on_change
        self._clock = clock
        self._facts: dict[str, ModelFact] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def fact(self, model_uuid: str) -> ModelFact:
        """What is known now. A file that is gone since is not known any more."""
        known = self._facts.get(model_uuid, _NOTHING)
        if known.place is Place.AVAILABLE and not Path(known.path).exists():
            del self._facts[model_uuid]
            return _NOTHING
        return known

    def locate(self, model_uuid: str) -> None:
        """Ask for a model, unless that is under way or was answered a moment ago."""
        known = self.fact(model_uuid)
        failed = known.place in (Place.MISSING, Place.UNREACHABLE)
        if model_uuid in self._asking or (failed and self._clock() < known.asked_at + RETRY_SECONDS):
            return
        if not failed:
            self._facts[model_uuid] = ModelFact(Place.LOCATING)
        self._asking[model_uuid] = asyncio.create_task(self._ask(model_uuid))

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, model_uuid: str) -> None:
        try:
            self._facts[model_uuid] = await self._answer(model_uuid)
        finally:
            del self._asking[model_uuid]
        self._on_change(model_uuid)

    async def _answer(self, model_uuid: str) -> ModelFact:
        request = LocateModelRequest(model_uuid=model_uuid)
        try:
            with asking("download"):
                found = await self._catalogue.LocateModel(request, timeout=LOCATE_SECONDS)
        except MeshError as error:
            missing = error.reason == Reason.ERROR_REASON_MODEL_NOT_FOUND
            place = Place.MISSING if missing else Place.UNREACHABLE
            return ModelFact(place, error.message, asked_at=self._clock())
        context = found.model.gguf.context_length
        return ModelFact(Place.AVAILABLE, "", found.path, context, self._clock())
