"""The calls of the Quant service about checkpoints and importance matrices: decode, call the domain, encode."""

# ruff: noqa: N802 - methods have the names of the contract

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

from llamesh.kit.calls import Context
from llamesh.model_addresses import shown_address
from llamesh.v1.checkpoint_pb2 import (
    Checkpoint,
    GetCheckpointRequest,
    GetMatrixFileRequest,
    MatrixFile,
    ReadCheckpointRequest,
    ReadCheckpointResponse,
    ReadMatrixFileRequest,
    ReadMatrixFileResponse,
)
from llamesh.v1.checkpoint_pb2_grpc import CheckpointServiceServicer
from services.download.checkpoints import Checkpoints
from services.download.matrix_files import MatrixFiles
from services.download.sources import SourceError
from services.download.verification import transfer_error


class CheckpointServicer(CheckpointServiceServicer):
    """llamesh.v1.CheckpointService."""

    def __init__(self, checkpoints: Checkpoints, matrices: MatrixFiles) -> None:
        self._checkpoints = checkpoints
        self._matrices = matrices

    async def GetCheckpoint(self, request: GetCheckpointRequest, context: Context) -> Checkpoint:
        """See checkpoint.proto."""
        with _errors(request.source):
            return await self._checkpoints.find(request.source)

    async def ReadCheckpoint(
        self, request: ReadCheckpointRequest, context: Context
    ) -> AsyncIterator[ReadCheckpointResponse]:
        """See checkpoint.proto."""
        reading = self._checkpoints.read(request.source, request.name, request.offset, request.version)
        with _errors(request.source):
            async with aclosing(reading) as chunks:
                async for chunk in chunks:
                    yield ReadCheckpointResponse(data=chunk)

    async def GetMatrixFile(self, request: GetMatrixFileRequest, context: Context) -> MatrixFile:
        """See checkpoint.proto."""
        with _errors(request.source):
            return await self._matrices.find(request.source)

    async def ReadMatrixFile(
        self, request: ReadMatrixFileRequest, context: Context
    ) -> AsyncIterator[ReadMatrixFileResponse]:
        """See checkpoint.proto."""
        with _errors(request.source):
            async with aclosing(self._matrices.read(request.source, request.version)) as chunks:
                async for chunk in chunks:
                    yield ReadMatrixFileResponse(data=chunk)


@contextmanager
def _errors(source: str) -> Iterator[None]:
    """Raise the MeshError of a source's error: UNAVAILABLE only if another try may help.

    The error shows neither the path of a folder nor credentials.
    """
    try:
        yield
    except SourceError as error:
        shown = source.rstrip("/").rpartition("/")[2] if source.startswith(("file:", "/")) else shown_address(source)
        raise transfer_error(error, shown) from error
