"""The check of a header costs a bounded number of steps and bytes, whatever the file says.

Steps are counted (calls that Python makes), not timed. Each hostile file is as large in one respect as the format allows; the limits are
those that `llamesh.kit.gguf` documents.
"""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llamesh.kit import gguf
from llamesh.kit.gguf import GgufError, GgufMetadata, metadata, read_gguf, reader
from tests.unit.gguf_bytes import (
    ARRAY,
    BASE_PAIRS,
    I32,
    STRING,
    U8,
    U32,
    U64,
    File,
    array,
    pair,
    tensor,
    text,
    u32,
    u64,
)

MIB = 1 << 20
MAX_CALLS = 200_000
"""Of these the largest number of keys needs three quarters, everything else a tenth."""
MAX_BYTES = 8 * MIB


def numbers(key: str, kind: int, count: int, size: int) -> bytes:
    """An array of so many numbers, all zero."""
    return text(key) + u32(ARRAY) + u32(kind) + u64(count) + bytes(count * size)


def attention_arrays(prefix: str, count: int) -> bytes:
    """A file whose metadata are integer arrays of 4,096 elements under keys that look as if they mattered."""
    return File().adding(*(numbers(f"{prefix}{index}", U32, 4096, 4) for index in range(count)))


class CountedFile(io.BytesIO):
    """Counts what is read from it."""

    reads = 0
    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.reads += 1
        self.bytes_read += len(data)
        return data


def measured(data: bytes) -> tuple[GgufMetadata | GgufError, int, int, CountedFile]:
    """What the check says, the calls that it made, the most bytes that it held, and the file."""
    file = CountedFile(data)
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1

    said: GgufMetadata | GgufError
    tracemalloc.start()
    sys.setprofile(count)
    try:
        said = read_gguf(file, len(data))
    except GgufError as error:
        said = error
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return said, calls, peak, file


HOSTILE: dict[str, Callable[[], bytes]] = {
    "integer arrays under .attention. keys": lambda: attention_arrays("x.attention.", 1400),
    "integer arrays under keys that end like those of heads": lambda: File().adding(
        *(numbers(f"a{index}.attention.head_count", U64, 4096, 8) for index in range(700))
    ),
    "one array of numbers that fills the file": lambda: File().adding(numbers("x.attention.y", U8, 60 * MIB, 1)),
    "heads of as many layers as can be": lambda: File().replacing(
        "llama.attention.head_count_kv", numbers("llama.attention.head_count_kv", U32, 8 * MIB, 4)
    ),
    "truth values": lambda: File().adding(numbers("x", 7, 60 * MIB, 1)),
    "a long text": lambda: File().adding(pair("x", STRING, bytes(16 * MIB))),
    "a long chat template": lambda: File().replacing(
        "tokenizer.chat_template", pair("tokenizer.chat_template", STRING, b"{" * 16 * MIB)
    ),
    "a long name": lambda: File().replacing("general.name", pair("general.name", STRING, b"n" * 16 * MIB)),
    "long keys": lambda: File().adding(*(pair(f"{index:04}" + "k" * 1020, U8, 1) for index in range(4000))),
    "many keys": lambda: File().adding(*(pair(f"k{index}", U8, 1) for index in range(gguf.MAX_PAIRS - 20))),
    "more keys than allowed": lambda: File().adding(*(pair(f"k{index}", U8, 1) for index in range(gguf.MAX_PAIRS))),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_steps_and_memory_are_bounded(case: str) -> None:
    data = HOSTILE[case]()
    _, calls, peak, file = measured(data)
    assert calls < MAX_CALLS
    assert peak < MAX_BYTES
    assert file.bytes_read < len(data) + MIB
    assert file.reads < len(data) // (MIB // 2) + 1500, (
        "at most one for each array that is skipped, and one for each window"
    )


def test_strings_cost_one_step_each_and_nothing_is_kept_of_them() -> None:
    words = text("x.words") + u32(ARRAY) + u32(STRING) + u64(500_000) + u64(0) * 500_000
    said, calls, peak, _ = measured(File().adding(words))
    assert isinstance(said, GgufMetadata)
    assert calls < 2.1 * 500_000
    assert peak < MAX_BYTES


def test_strings_of_all_arrays_together_are_limited() -> None:
    half = reader.MAX_STRINGS // 2
    arrays = [text(name) + u32(ARRAY) + u32(STRING) + u64(half) + u64(0) * half for name in ("x", "y")]
    with pytest.raises(GgufError, match=f"more than {reader.MAX_STRINGS} strings"):
        data = File().adding(*arrays)
        read_gguf(io.BytesIO(data), len(data))


def test_tensors_cost_a_few_steps_each() -> None:
    count = gguf.MAX_TENSORS
    infos = tuple(tensor(f"t{index}", [8], 0, index * 32) for index in range(count))
    said, calls, peak, _ = measured(replace(File(), tensors=infos, data=bytes(32 * count)).build())
    assert isinstance(said, GgufMetadata)
    assert said.tensor_count == count
    assert calls < 100 * count
    assert peak < MAX_BYTES


def test_keys_and_a_template_at_their_limits_are_accepted_and_above_refused() -> None:
    kept = sum(len(item) for item in ("general.architecture", *_keys(BASE_PAIRS[1:])))
    room = metadata.MAX_KEYS_BYTES - kept
    keys = [f"{index:04}" + "k" * 1020 for index in range(room // 1024)]
    last = "l" * (room % 1024)
    fitting = [pair(key, U8, 1) for key in (*keys, last)]
    assert isinstance(measured(File().adding(*fitting))[0], GgufMetadata)
    refused = measured(File().adding(*fitting[:-1], pair(last + "l", U8, 1)))[0]
    assert "bytes of keys" in str(refused)

    for length, accepted in ((metadata.MAX_TEMPLATE, True), (metadata.MAX_TEMPLATE + 1, False)):
        template = pair("tokenizer.chat_template", STRING, b"{" * length)
        said = measured(File().replacing("tokenizer.chat_template", template))[0]
        assert isinstance(said, GgufMetadata) is accepted


def _keys(pairs: tuple[bytes, ...]) -> list[str]:
    return [item[8 : 8 + struct.unpack_from("<Q", item)[0]].decode() for item in pairs]


def test_heads_of_each_layer_are_read_wherever_their_array_stands() -> None:
    heads = array("llama.attention.head_count_kv", I32, [3, 5])
    filler = numbers("x.filler", U8, 3 * MIB, 1)
    others = tuple(item for item in BASE_PAIRS if not item.startswith(text("llama.attention.head_count_kv")))
    data = replace(File(), pairs=(heads, filler, *others, filler.replace(b"x.filler", b"y.filler"))).build()
    said, *_ = measured(data)
    assert isinstance(said, GgufMetadata)
    assert said.kv_head_count == 4
    assert said.tensor_count == 2
