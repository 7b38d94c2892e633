"""Cache of the paths of model files. The download service locates a file, and fetches it first if necessary.

Invariant: a returned path exists, and its file has not changed since the download service verified it. `locate` never waits: the result
arrives as a call of `on_change`.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from llamesh.kit.channels import START_SECONDS, asking
from llamesh.kit.errors import MeshError, Reason
from llamesh.v1.download_pb2 import LocateModelRequest
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub
from llamesh.v1.model_pb2 import MODEL_FILE_ROLE_ADAPTER, MODEL_FILE_ROLE_PROJECTOR

LOCATE_SECONDS = 3600.0
"""Deadline of one request, in seconds: long enough to fetch a large model from a remote object store."""
RETRY_SECONDS = 2.0
"""Seconds before a failed request is retried for the first time; doubled with every further failure."""
MAX_RETRY_SECONDS = 30.0
"""Longest pause before a failed request is retried, in seconds."""


class Availability(enum.Enum):
    """Availability of a model's file."""

    UNKNOWN = "unknown"
    LOCATING = "locating"
    AVAILABLE = "available"
    MISSING = "missing"
    """The catalogue has no such model."""
    CORRUPT = "corrupt"
    """The catalogue has the model, but its object is missing or damaged: it must be downloaded again."""
    UNREACHABLE = "unreachable"
    """The download service does not answer, or cannot fetch the model."""


Version = tuple[tuple[int, int, int], ...]
"""Inode, length and modification time of each file."""


@dataclass(frozen=True, slots=True)
class ModelObject:
    """An object of the store, and the path under which an engine opens its bytes."""

    key: str
    size_bytes: int
    path: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Last known availability and path of a model's file."""

    availability: Availability
    message: str = ""
    path: str = ""
    context_length: int = 0
    """Number of tokens that the model was trained for; 0 if unknown."""
    asked_at: float = 0.0
    """Monotonic time at which the last answer arrived, or the question failed; 0 before."""
    projector: str = ""
    """Path of the model's projector; empty if it has none."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Paths of the model's LoRA adapters by their names."""
    files: tuple[str, ...] = ()
    """Paths of all files of the model."""
    version: Version | None = None
    """Version of these files at the time of the answer."""
    failures: int = 0
    """Number of consecutive failures."""
    objects: tuple[ModelObject, ...] = ()
    """Where each file is found if it is not on this machine: the engine fetches it."""

    @property
    def not_before(self) -> float:
        """Earliest monotonic time of the next request for this model."""
        pause = min(RETRY_SECONDS * 2 ** min(self.failures - 1, 16), MAX_RETRY_SECONDS) if self.failures else 0.0
        return self.asked_at + pause


_AVAILABILITY = {
    Reason.ERROR_REASON_MODEL_NOT_FOUND: Availability.MISSING,
    Reason.ERROR_REASON_MODEL_CORRUPT: Availability.CORRUPT,
}
_STARTING = "the download service, which locates the model's file, is starting"
_NOTHING = ModelFile(Availability.UNKNOWN)


class ModelFiles:
    """Cache of model files by model."""

    def __init__(
        self,
        download: grpc.aio.Channel,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`download`: the channel to the download service."""
        self.catalogue = CatalogueServiceStub(download)
        self._on_change: Callable[[str], None] = lambda _: None
        self._clock = clock
        self._began = clock()
        self._answered = False
        """Whether the download service has answered since this process started."""
        self._files: dict[str, ModelFile] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def open(self, on_change: Callable[[str], None]) -> None:
        """Start. `on_change(model_uuid)` is called for every answer."""
        self._on_change = on_change

    def get(self, model_uuid: str) -> ModelFile:
        """Return the cached entry. The entry of a file that has vanished or changed is dropped, so that it is verified again."""
        known = self._files.get(model_uuid, _NOTHING)
        if known.availability is Availability.AVAILABLE and not self._is_current(known):
            del self._files[model_uuid]
            return _NOTHING
        return known

    def locate(self, model_uuid: str) -> None:
        """Request a model's path, unless a request is running or was answered just now."""
        known = self.get(model_uuid)
        if model_uuid in self._asking or self._clock() < known.not_before:
            return
        if not known.failures:
            self._files[model_uuid] = ModelFile(Availability.LOCATING)
        self._asking[model_uuid] = asyncio.create_task(self._ask(model_uuid))

    def available(self) -> list[str]:
        """Return the models whose files are available."""
        return [name for name, file in self._files.items() if file.availability is Availability.AVAILABLE]

    def ask_again(self, model_uuid: str) -> None:
        """Request a model that is available again. Its entry stays until the answer, which is announced only if it differs."""
        if model_uuid not in self._asking:
            self._asking[model_uuid] = asyncio.create_task(self._ask(model_uuid))

    async def close(self) -> None:
        """Cancel all requests."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, model_uuid: str) -> None:
        before = self._files.get(model_uuid, _NOTHING)
        try:
            answer = await self._answer(model_uuid, before.failures)
        finally:
            del self._asking[model_uuid]
        if before.availability is Availability.AVAILABLE and answer.availability is Availability.UNREACHABLE:
            return  # An outage of the download service says nothing about the model.
        self._files[model_uuid] = answer
        if replace(answer, asked_at=before.asked_at) != before:
            self._on_change(model_uuid)

    async def _answer(self, model_uuid: str, failures: int) -> ModelFile:
        try:
            with asking("download"):
                found = await self._located(model_uuid)
        except MeshError as error:
            if self._is_starting(error):
                return ModelFile(Availability.LOCATING, _STARTING, asked_at=self._clock(), failures=failures + 1)
            availability = _AVAILABILITY.get(error.reason, Availability.UNREACHABLE)
            message = f"{error.message}. {error.remedy}" if availability is Availability.CORRUPT else error.message
            return ModelFile(availability, message, asked_at=self._clock(), failures=failures + 1)
        self._answered = True
        return replace(
            found, asked_at=self._clock(), failures=0 if found.availability is Availability.AVAILABLE else failures + 1
        )

    async def _located(self, model_uuid: str) -> ModelFile:
        """Ask for the files of a model; return once they are on this machine. Raises the errors of the download service."""
        found = await self.catalogue.LocateModel(LocateModelRequest(model_uuid=model_uuid), timeout=LOCATE_SECONDS)
        files = tuple(found.file_paths)
        version = _version(files)
        if version is None:
            # A file was removed after the answer was sent.
            return ModelFile(Availability.UNREACHABLE, f"a file of {found.path} is not there")
        known = list(zip(found.model.files, files, strict=False))
        return ModelFile(
            Availability.AVAILABLE,
            path=found.path,
            context_length=found.model.gguf.context_length,
            projector=next((path for file, path in known if file.role == MODEL_FILE_ROLE_PROJECTOR), ""),
            adapters={file.name: path for file, path in known if file.role == MODEL_FILE_ROLE_ADAPTER},
            files=files,
            version=version,
        )

    def _is_current(self, known: ModelFile) -> bool:
        """Whether the files of an entry are still those of the answer."""
        return _version(known.files) == known.version

    def _is_starting(self, error: MeshError) -> bool:
        """Return whether a failed request means that the download service is starting, as this process is."""
        self._answered = self._answered or error.reason != Reason.ERROR_REASON_COMPONENT_UNAVAILABLE
        return not self._answered and self._clock() - self._began < START_SECONDS


def _version(paths: Iterable[str]) -> Version | None:
    """Return an identity of files that changes if one is replaced or modified; None if one is missing."""
    try:
        found = [Path(path).stat() for path in paths]
    except OSError:
        return None
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)
