"""A checkpoint as the source of a job: what its files say is read for the estimate, in bounded time, and is not needed for it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError
from llamesh.v1.checkpoint_pb2 import Checkpoint, CheckpointFile, ReadCheckpointRequest, ReadCheckpointResponse
from llamesh.v1.model_pb2 import GgufMetadata
from services.quant import job_sources
from services.quant.job_sources import JobSources
from services.quant.step.untrusted_json import MAX_MARKS_OF_A_CALL

CONFIG = {"architectures": ["X"], "torch_dtype": "bfloat16", "hidden_size": 896, "vocab_size": 151936}
WEIGHTS = "model-00001-of-00002.safetensors"
REST = "model-00002-of-00002.safetensors"


def with_length(header: Any) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def tensors(of_type: str) -> bytes:
    return with_length({"w": {"dtype": of_type, "shape": [2], "data_offsets": [0, 8]}})


class Reading:
    """One call of ReadCheckpoint."""

    def __init__(self, data: bytes, code: grpc.StatusCode | None) -> None:
        self._data = data
        self._code = code

    async def __aiter__(self) -> AsyncIterator[ReadCheckpointResponse]:
        yield ReadCheckpointResponse(data=self._data)
        if self._code is not None:
            raise grpc.aio.AioRpcError(self._code, grpc.aio.Metadata(), grpc.aio.Metadata())

    def cancel(self) -> None:
        """Nothing runs."""


class Checkpoints:
    """A fake of the download service's checkpoints. `failing` has the files whose reads fail."""

    def __init__(self, files: Mapping[str, bytes], sizes: Mapping[str, int]) -> None:
        self.files = dict(files)
        self.failing: dict[str, grpc.StatusCode] = {}
        self.asked = 0
        each = [CheckpointFile(name=name, size_bytes=sizes.get(name, len(data))) for name, data in files.items()]
        self._checkpoint = Checkpoint(source="hf:a/b@c", shown_source="hf:a/b@c", name="b", files=each)

    async def GetCheckpoint(self, *_: object, **__: object) -> Checkpoint:
        self.asked += 1
        return self._checkpoint

    def ReadCheckpoint(self, request: ReadCheckpointRequest, **_: object) -> Reading:
        return Reading(self.files[request.name], self.failing.get(request.name))


@pytest.fixture
async def sources(tmp_path: Path) -> AsyncIterator[JobSources]:
    """They ask nobody."""
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        yield JobSources(Settings(home=tmp_path, llama_convert_bin="/bin/true"), channel)


async def found(sources: JobSources, checkpoints: Checkpoints, user: str = "usr_ada") -> GgufMetadata:
    """What the job sources say of the model that the conversion of a checkpoint gives."""
    sources._checkpoints = checkpoints  # type: ignore[assignment]
    return (await sources.find("", "hf:a/b", user)).model.gguf


def checkpoint(config: Any = CONFIG, header: bytes = tensors("F32"), rest: int = 0) -> Checkpoints:
    """A checkpoint of 1,000 bytes of weights, with `rest` more bytes in another file."""
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    files = {"config.json": text, WEIGHTS: header, **({REST: b""} if rest else {})}
    return Checkpoints(files, {WEIGHTS: 1000, REST: rest})


async def test_the_weights_are_counted_by_the_types_of_the_file(sources: JobSources) -> None:
    model = await found(sources, checkpoint())
    assert (model.quantisation, model.parameter_count) == ("F32", 250)


async def test_a_header_with_too_many_elements_is_not_parsed(sources: JobSources) -> None:
    hostile = b'{"w": {"dtype": "F32", "data_offsets": [0, 8]}, "a": {"b": [' + b"[]," * (MAX_MARKS_OF_A_CALL // 2)
    model = await found(sources, checkpoint(header=with_length(hostile + b"[]]}}")))
    assert (model.quantisation, model.parameter_count) == ("BF16", 500)


async def test_a_configuration_with_too_many_elements_is_refused(sources: JobSources) -> None:
    hostile = b'{"architectures": ["X"], "a": [' + b"[]," * (MAX_MARKS_OF_A_CALL // 2) + b"[]]}"
    with pytest.raises(MeshError, match="names no architecture"):
        await found(sources, checkpoint(hostile))


async def test_what_a_stranger_wrote_is_parsed_beside_the_calls_one_text_at_a_time(
    sources: JobSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing: list[int] = []
    most = 0
    gate = threading.Event()

    def parse(data: bytes) -> Mapping[str, int]:
        nonlocal most
        parsing.append(1)
        most = max(most, len(parsing))
        assert gate.wait(10), "the process serves nothing meanwhile"
        parsing.pop()
        return {}

    monkeypatch.setattr(job_sources, "bytes_of_types", parse)
    checkpoints = checkpoint()
    both = asyncio.gather(found(sources, checkpoints), found(sources, checkpoints, "usr_ben"))
    while not parsing:
        await asyncio.sleep(0.01)
    gate.set()
    await both
    assert most == 1


async def test_many_calls_of_one_user_have_one_text_before_that_of_another(
    sources: JobSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def parse(data: bytes) -> Any:
        assert gate.wait(10), "the process serves nothing meanwhile"
        return json.loads(data)

    monkeypatch.setattr(job_sources, "_parsed_or_none", parse)
    checkpoints = checkpoint()
    calls = asyncio.gather(*(found(sources, checkpoints, user) for user in ("usr_ada",) * 5 + ("usr_ben",)))
    while checkpoints.asked < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert checkpoints.asked == 2
    gate.set()
    assert len(await calls) == 6


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE])
async def test_a_header_that_does_not_come_leaves_the_type_of_the_configuration(
    sources: JobSources, code: grpc.StatusCode
) -> None:
    checkpoints = checkpoint(header=tensors("F32")[:9])
    checkpoints.failing[WEIGHTS] = code
    model = await found(sources, checkpoints)
    assert (model.quantisation, model.parameter_count) == ("BF16", 500)


async def test_a_read_of_a_header_that_is_refused_refuses_the_job(sources: JobSources) -> None:
    checkpoints = checkpoint(header=b"")
    checkpoints.failing[WEIGHTS] = grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(MeshError, match="the download service failed"):
        await found(sources, checkpoints)


async def test_a_configuration_that_does_not_come_refuses_the_job(sources: JobSources) -> None:
    checkpoints = checkpoint()
    checkpoints.failing["config.json"] = grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(MeshError, match="did not answer in time"):
        await found(sources, checkpoints)


async def test_the_numbers_that_decide_about_fallbacks_come_from_the_configuration(sources: JobSources) -> None:
    """Of a model whose rows are no multiples of 256, types become larger: `services.quant.variant_sizes`."""
    model = await found(sources, checkpoint())
    assert (model.embedding_length, model.vocabulary_size) == (896, 151936)


@pytest.mark.parametrize("wrong", [None, 0, -1, True, 1.5, "896", [], 1 << 31, 1 << 70])
async def test_numbers_out_of_their_range_are_left_out(sources: JobSources, wrong: object) -> None:
    model = await found(sources, checkpoint({**CONFIG, "hidden_size": wrong, "vocab_size": wrong}))
    assert (model.embedding_length, model.vocabulary_size) == (0, 0)
