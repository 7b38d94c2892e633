"""The controller requests a model with exponential backoff, explains why it has none, and asks again when its file changes."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from controller import model_files as module
from controller.model_files import MAX_RETRY_SECONDS, RETRY_SECONDS, Availability, ModelFiles
from llamesh.kit.channels import START_SECONDS
from llamesh.kit.errors import MeshError, Reason
from llamesh.v1.download_pb2 import LocateModelResponse


class Catalogue:
    """FAKE: gives the answers that the test sets."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: MeshError | str = ""
        self.parts: list[str] = []

    async def LocateModel(self, request: Any, timeout: float) -> LocateModelResponse:
        self.asked += 1
        if isinstance(self.answer, MeshError):
            raise self.answer
        return LocateModelResponse(path=self.answer, file_paths=self.parts or [self.answer])


class World:
    """Model files with a clock that the test controls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.catalogue = Catalogue()
        monkeypatch.setattr(module, "CatalogueServiceStub", lambda _: self.catalogue)
        self.told: list[str] = []
        self.models = ModelFiles(None, lambda: self.now)  # type: ignore[arg-type]
        self.models.open(self.told.append)

    async def ask(self) -> Availability:
        self.models.locate("m")
        told = len(self.told)
        for _ in range(10):
            await asyncio.sleep(0)
            if len(self.told) > told:
                break
        return self.models.get("m").availability


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize(
    ("reason", "availability"),
    [
        (Reason.ERROR_REASON_MODEL_NOT_FOUND, Availability.MISSING),
        (Reason.ERROR_REASON_MODEL_CORRUPT, Availability.CORRUPT),
        (Reason.ERROR_REASON_STORE_UNAVAILABLE, Availability.UNREACHABLE),
        (Reason.ERROR_REASON_MODEL_NOT_READY, Availability.UNREACHABLE),
    ],
)
async def test_a_no_is_asked_again_with_growing_pauses(
    world: World, reason: Reason.ValueType, availability: Availability
) -> None:
    world.catalogue.answer = MeshError(reason, "no")
    asked_at = []
    while world.now < 1300.0:
        before = world.catalogue.asked
        assert await world.ask() is availability
        if world.catalogue.asked > before:
            asked_at.append(world.now)
        world.now += 1.0
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
    assert pauses[0] == RETRY_SECONDS
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_RETRY_SECONDS
    assert len(asked_at) < 20


async def test_the_status_of_a_corrupt_model_names_the_remedy(world: World) -> None:
    world.catalogue.answer = MeshError(Reason.ERROR_REASON_MODEL_CORRUPT, "m cannot be used")
    await world.ask()
    assert world.models.get("m").message.startswith("m cannot be used. Download the model again")


async def test_a_file_that_changes_is_asked_about_anew(world: World, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF whole")
    world.catalogue.answer = str(file)
    assert await world.ask() is Availability.AVAILABLE
    assert await world.ask() is Availability.AVAILABLE
    assert world.catalogue.asked == 2
    file.write_bytes(b"GGUF")
    assert world.models.get("m").availability is Availability.UNKNOWN
    world.catalogue.answer = MeshError(Reason.ERROR_REASON_MODEL_CORRUPT, "truncated")
    assert await world.ask() is Availability.CORRUPT
    file.write_bytes(b"GGUF whole")
    world.catalogue.answer = str(file)
    world.now += MAX_RETRY_SECONDS
    assert await world.ask() is Availability.AVAILABLE
    file.unlink()
    assert world.models.get("m").availability is Availability.UNKNOWN


async def test_a_download_service_that_has_not_answered_yet_is_starting_for_a_while(world: World) -> None:
    world.catalogue.answer = MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, "the download service does not answer"
    )
    assert await world.ask() is Availability.LOCATING
    assert "is starting" in world.models.get("m").message
    world.now += START_SECONDS
    assert await world.ask() is Availability.UNREACHABLE


async def test_a_download_service_that_has_answered_is_not_starting(world: World, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    world.catalogue.answer = str(file)
    assert await world.ask() is Availability.AVAILABLE
    world.catalogue.answer = MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, "the download service does not answer"
    )
    assert await world.ask() is Availability.UNREACHABLE
