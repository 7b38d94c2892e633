"""The source of a job, as it is when the job is submitted: a model of the catalogue, or a checkpoint that the job converts first.

Invariant: a checkpoint is described by the model that its conversion will give, so every rule of `submission` holds for both. What a
stranger has written is parsed one text at a time, and only if it is short: the process answers no other call meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import grpc

from llamesh.kit.channels import asking, call_options
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason, error_from_rpc
from llamesh.kit.logs import log
from llamesh.kit.outages import is_outage
from llamesh.v1.checkpoint_pb2 import (
    Checkpoint,
    CheckpointFile,
    GetCheckpointRequest,
    GetMatrixFileRequest,
    MatrixFile,
    ReadCheckpointRequest,
)
from llamesh.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from llamesh.v1.download_pb2 import GetCatalogueModelRequest
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub
from llamesh.v1.model_pb2 import GgufMetadata, Model
from services.quant.checkpoint_config import (
    CODE_FILES,
    MAX_VOCABULARY,
    OTHER_CONVERTER,
    CheckpointRefusedError,
    read_config,
    refuse_unusable,
    uses_own_converter,
    whole_number,
)
from services.quant.step.untrusted_json import MAX_MARKS_OF_A_CALL, parse_json
from services.quant.stored_types import bytes_of_types, bytes_to_read, weights_of

T = TypeVar("T")

MAX_CONFIG_BYTES = 1 << 20
"""Maximum size of a file that is read when a job is submitted. Most have some kilobytes; a longer tokenizer_config.json is read
when the checkpoint is fetched, before its weights."""
_NO_ID = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class JobSource:
    """What a job is made from. `checkpoint` is None for a model of the catalogue; else `model` is what the conversion will give."""

    model: Model
    checkpoint: Checkpoint | None = None

    @property
    def converted(self) -> bool:
        """Whether the source is converted first."""
        return self.checkpoint is not None

    @property
    def recorded(self) -> Mapping[str, str]:
        """The fields of a job's row that say what it is made from."""
        if self.checkpoint is None:
            return {"model_uuid": self.model.model_uuid, "source": "", "shown_source": ""}
        return {"model_uuid": "", "source": self.checkpoint.source, "shown_source": self.checkpoint.shown_source}


class JobSources:
    """Asks the download service of this mesh for the sources of jobs."""

    def __init__(self, settings: Settings, channel: grpc.aio.Channel) -> None:
        self._settings = settings
        self._catalogue = CatalogueServiceStub(channel)
        self._checkpoints = CheckpointServiceStub(channel)
        self._parsing = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """The lock of each user who has a checkpoint read."""

    async def find(self, model_uuid: str, source: str, requester_uid: str) -> JobSource:
        """Return the model of the catalogue, or the checkpoint at `source` if it is not empty.

        The checkpoints of one user are read one after the other, so a user with many calls delays each other user by one text at most.
        Raises MODEL_NOT_FOUND, SOURCE_REFUSED, SOURCE_UNAVAILABLE, and QUANT_REFUSED for a checkpoint that cannot be converted.
        """
        if source and self._settings.quant_engine != "embedded":
            words = (
                "pods cannot read checkpoints yet: make an F16 file of it with QUANT_ENGINE=embedded, and quantise that"
            )
            raise MeshError(Reason.ERROR_REASON_QUANT_REFUSED, words, {"rule": "engine"})
        with asking("download"):
            if not source:
                wanted = GetCatalogueModelRequest(model_uuid=model_uuid)
                return JobSource(await self._catalogue.GetCatalogueModel(wanted, **call_options()))
            async with self._turns.setdefault(requester_uid, asyncio.Lock()):
                return await self._find_checkpoint(source)

    async def _find_checkpoint(self, source: str) -> JobSource:
        checkpoint = await self._checkpoints.GetCheckpoint(GetCheckpointRequest(source=source), **call_options())
        documents = {name: await self._document(checkpoint, name) for name in CODE_FILES}
        try:
            self._check(checkpoint, documents)
        except CheckpointRefusedError as error:
            words = f"{checkpoint.shown_source} cannot be converted: {error}"
            raise MeshError(Reason.ERROR_REASON_QUANT_REFUSED, words, {"rule": error.rule}) from error
        types = await self._parsed(bytes_of_types, await self._header(checkpoint))
        return JobSource(_converted(checkpoint, documents["config.json"], types), checkpoint)

    async def check_folder(self, source: str) -> None:
        """Raise SOURCE_REFUSED if the checkpoint in a folder cannot be read any more."""
        with asking("download"):
            await self._checkpoints.GetCheckpoint(GetCheckpointRequest(source=source), **call_options())

    async def matrix(self, source: str) -> MatrixFile:
        """Return the file of an importance matrix that a job is given; an empty message if it is given none.

        Raises SOURCE_REFUSED.
        """
        if not source or self._settings.quant_engine != "embedded":
            return MatrixFile()
        with asking("download"):
            return await self._checkpoints.GetMatrixFile(GetMatrixFileRequest(source=source), **call_options())

    async def _document(self, checkpoint: Checkpoint, name: str) -> Any:
        """Return a parsed file; None if it is missing, no JSON, or larger than the bounds."""
        file = next((each for each in checkpoint.files if each.name == name), None)
        if file is None or file.size_bytes > MAX_CONFIG_BYTES:
            return None
        request = ReadCheckpointRequest(source=checkpoint.source, name=file.name, version=file.version)
        call, data = self._checkpoints.ReadCheckpoint(request, **call_options()), bytearray()
        async for part in call:
            data += part.data
            if len(data) > MAX_CONFIG_BYTES:
                # The source sends more than it has listed.
                call.cancel()
                return None
        return await self._parsed(_parsed_or_none, bytes(data))

    async def _parsed(self, parse: Callable[[bytes], T], data: bytes) -> T:
        """Parse what a stranger has written, one text at a time."""
        async with self._parsing:
            return await asyncio.to_thread(parse, data)

    async def _header(self, checkpoint: Checkpoint) -> bytes:
        """Return the beginning of the first file of weights, with its header, which stands for those of all files.

        Without it the estimate is worse, so an outage of this read refuses no job: then it is empty.
        """
        file = next(filter(has_weights, checkpoint.files))
        request = ReadCheckpointRequest(source=checkpoint.source, name=file.name, version=file.version)
        call, data = self._checkpoints.ReadCheckpoint(request, **call_options()), bytearray()
        try:
            async for part in call:
                data += part.data
                if len(data) >= bytes_to_read(data):
                    call.cancel()
                    break
        except grpc.aio.AioRpcError as error:
            failure = error_from_rpc(error, "download")
            if not is_outage(failure):
                raise
            log.warning("a header cannot be read", source=checkpoint.shown_source, file=file.name, error=str(failure))
            return b""
        return bytes(data)

    def _check(self, checkpoint: Checkpoint, documents: Mapping[str, Any]) -> None:
        """Raise CheckpointRefusedError if the checkpoint cannot be converted. `documents` are its parsed CODE_FILES."""
        config = documents["config.json"]
        refuse_unusable(config)
        program = self._settings.llama_convert_bin
        if program and shutil.which(program) is None:
            raise CheckpointRefusedError("converter", f"LLAMA_CONVERT_BIN is {program}, which is not a program")
        if uses_own_converter(program, documents.values()):
            read_config(config)
            if all(file.name != "tokenizer.json" for file in checkpoint.files):
                raise CheckpointRefusedError(
                    "tokenizer", f"it has no tokenizer.json, which is converted; {OTHER_CONVERTER}"
                )


def _parsed_or_none(data: bytes) -> Any:
    try:
        return parse_json(data, MAX_MARKS_OF_A_CALL)
    except ValueError:
        return None


def _converted(checkpoint: Checkpoint, config: Mapping[str, Any], types: Mapping[str, int]) -> Model:
    """Return the model that the conversion will give. `types` are the bytes of the weights in its first file by their type."""
    first, *others = filter(has_weights, checkpoint.files)
    kind, weights = weights_of(types, config, first.size_bytes, weight_bytes(others))
    return Model(
        model_uuid=id_of(checkpoint.name),
        sha256=digest_of(checkpoint.files),
        size_bytes=sum(file.size_bytes for file in checkpoint.files),
        gguf=GgufMetadata(
            quantisation=kind,
            parameter_count=weights,
            embedding_length=whole_number(config, "hidden_size"),
            vocabulary_size=whole_number(config, "vocab_size", maximum=MAX_VOCABULARY),
        ),
    )


def weight_bytes(files: Iterable[CheckpointFile]) -> int:
    """Return the length of the weights of a checkpoint in bytes."""
    return sum(file.size_bytes for file in filter(has_weights, files))


def has_weights(file: CheckpointFile) -> bool:
    """Whether a file of a checkpoint has its weights."""
    return file.name.endswith(".safetensors")


def digest_of(files: Iterable[CheckpointFile]) -> str:
    """Return the SHA-256 of the names, lengths and digests of the files of a checkpoint: it changes if a file does."""
    lines = sorted(f"{file.name} {file.size_bytes} {file.sha256 or file.git_blob or file.version}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def id_of(name: str) -> str:
    """Return the default id of a model made of a checkpoint of this name."""
    return _NO_ID.sub("-", name).strip("._-")[:111] or "model"
