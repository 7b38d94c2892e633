"""A file that is no model is refused when its header has come, and not after all of it; a good one passes unchanged."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import pytest

from llamesh.kit.errors import MeshError
from llamesh.kit.gguf import GgufError, read_tensors
from services.download import early_check
from services.download.early_check import checked_chunks
from services.download.model_parts import check_part
from tests.unit.gguf_bytes import STRING, U16, File, array, pair, tensor

DATA = 48 << 20
LARGE = replace(File(), tensors=(tensor("token_embd.weight", [DATA // 4], 0, 0),), data=bytes(DATA))
WHOLE = partial(check_part, number=1, count=1)
WORDS = array("test.words", STRING, ["x" * 1000] * 5_000)
"""Five MB of header."""


class Stream:
    """The chunks of a file, and how many bytes were taken."""

    def __init__(self, data: bytes, chunk: int = 1 << 20) -> None:
        self.data = data
        self.chunk = chunk
        self.taken = 0
        self.with_room = 0
        """Bytes for which room was asked."""

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), self.chunk):
            part = self.data[start : start + self.chunk]
            self.taken += len(part)
            yield part

    async def passed(self, size: int | None = -1) -> bytes:
        counted: list[int] = []
        size = len(self.data) if size == -1 else size
        chunks = checked_chunks(self.chunks(), size, counted.append, WHOLE, self.take)
        data = b"".join([part async for part in chunks])
        assert sum(counted) == len(data) == self.with_room
        return data

    async def take(self, length: int) -> None:
        self.with_room += length


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("file", [File(), replace(LARGE, extra=(WORDS,))], ids=["small", "large header"])
async def test_a_model_passes_unchanged(file: File, chunk: int) -> None:
    data = file.build()
    if chunk > 7 or len(data) < 10_000:
        assert await Stream(data, chunk).passed() == data
    assert await Stream(data).passed(None) == data


async def test_the_bytes_of_a_header_are_not_kept_once_they_are_passed_on() -> None:
    stream = Stream(replace(LARGE, extra=(WORDS,)).build())
    chunks = checked_chunks(stream.chunks(), len(stream.data), lambda _: None, WHOLE, stream.take)
    tracemalloc.start()
    try:
        passed = 0
        async for part in chunks:
            passed += len(part)
            if passed > 16 << 20:
                break
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await chunks.aclose()  # type: ignore[attr-defined]
    assert kept < 4 << 20, "two chunks, and none of the header"


@pytest.mark.parametrize("size", [-1, None], ids=["known size", "unknown size"])
async def test_a_part_of_a_model_is_refused_at_its_header(size: int | None) -> None:
    stream = Stream(replace(LARGE, extra=(pair("split.no", U16, 0), pair("split.count", U16, 3))).build())
    with pytest.raises(MeshError, match="part 1 of a model split in 3"):
        await stream.passed(size)
    assert stream.taken <= 2 << 20
    assert stream.with_room == 0, "a file gets room after the check of its header"


@pytest.mark.parametrize("size", [-1, None], ids=["known size", "unknown size"])
async def test_a_projector_is_refused_behind_a_large_header(size: int | None) -> None:
    stream = Stream(replace(LARGE, extra=(WORDS, pair("general.type", STRING, "mmproj"))).build())
    with pytest.raises(MeshError, match="of the kind 'mmproj'"):
        await stream.passed(size)
    assert stream.taken <= 9 << 20


async def test_a_broken_header_and_a_wrong_length_are_refused_at_once() -> None:
    stream = Stream(replace(LARGE, pair_count=5_000).build())
    with pytest.raises(GgufError, match="5000 metadata pairs"):
        await stream.passed()
    assert stream.taken <= 1 << 20
    stream = Stream(replace(LARGE, pair_count=5_000).build())
    with pytest.raises(GgufError, match="5000 metadata pairs"):
        await stream.passed(None)
    assert stream.taken <= 1 << 20
    longer = Stream(LARGE.build())
    with pytest.raises(GgufError):
        await longer.passed(len(longer.data) + 64)
    assert longer.taken <= 2 << 20


@pytest.mark.parametrize("data", [b"<html>" * 1000, b"PK\x03\x04" * 10, b"G", b"GGU0", b"gguf"])
async def test_a_file_that_is_not_gguf_is_refused_at_its_first_bytes(data: bytes) -> None:
    if data == b"G":
        assert await Stream(data).passed(None) == data, "too short to tell: refused when it is complete"
        return
    for size in (None, len(data)):
        with pytest.raises(GgufError, match="not a GGUF file"):
            await Stream(data, 3).passed(size)


async def test_the_end_of_a_file_of_unknown_size_is_left_to_the_check_of_the_whole() -> None:
    data = LARGE.build()
    for whole in (data[:-64], data + bytes(64)):
        assert await Stream(whole).passed(None) == whole
        with pytest.raises(GgufError, match=r"truncated|follow the last tensor"):
            read_tensors(io.BytesIO(whole), len(whole))


async def test_a_header_that_is_too_large_to_keep_is_left_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_check, "MAX_HEADER_BYTES", 2 << 20)
    data = replace(LARGE, extra=(WORDS, pair("general.type", STRING, "mmproj"))).build()
    assert await Stream(data).passed() == data
