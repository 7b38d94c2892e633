"""Each malformed file is refused for its own reason, at the byte where it is wrong."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from llamesh.kit.gguf import GgufError, read_gguf
from tests.unit.gguf_bytes import (
    ARRAY,
    BASE_PAIRS,
    BASE_TENSORS,
    BOOL,
    F32,
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

GOOD = File()
MAX_U64 = (1 << 64) - 1
HEADER = 24  # magic, version and the two counts
PAIRS_END = HEADER + len(b"".join(BASE_PAIRS))


def one_tensor(*args: object, n_dims: int | None = None) -> bytes:
    """A file whose only tensor is the given one."""
    return replace(GOOD, tensors=(tensor(*args, n_dims=n_dims),)).build()  # type: ignore[arg-type]


def two_tensors(second: bytes) -> bytes:
    return replace(GOOD, tensors=(BASE_TENSORS[0], second)).build()


# name: (bytes, what the reason must say, the offset it must name or None)
CASES: dict[str, tuple[bytes, str, int | None]] = {
    # The header
    "empty": (b"", "the file ends here", 0),
    "three bytes": (b"GGU", "the file ends here", 0),
    "magic only": (b"GGUF", "the file ends here", 4),
    "an HTML page": (b"<!DOCTYPE html><html></html>" + bytes(64), "not a GGUF file", 0),
    "a zip archive": (b"PK\x03\x04" + bytes(64), "not a GGUF file", 0),
    "the old ggml magic": (b"lmgg" + bytes(64), "not a GGUF file", 0),
    "magic backwards": (replace(GOOD, magic=b"FUGG").build(), "not a GGUF file", 0),
    "version 0": (replace(GOOD, version=0).build(), "GGUF version 0", 4),
    "version 1": (replace(GOOD, version=1).build(), "GGUF version 1", 4),
    "version 4": (replace(GOOD, version=4).build(), "GGUF version 4", 4),
    "version 2^32-1": (replace(GOOD, version=0xFFFFFFFF).build(), "GGUF version", 4),
    "big endian": (replace(GOOD, version=3 << 24).build(), "big-endian", 4),
    "cut in the counts": (GOOD.build()[:20], "the file ends here", 16),
    "tensor count 2^64-1": (replace(GOOD, tensor_count=MAX_U64).build(), "tensors, at most", 8),
    "tensor count negative when signed": (replace(GOOD, tensor_count=1 << 63).build(), "tensors, at most", 8),
    "tensor count one above the limit": (replace(GOOD, tensor_count=16_385).build(), "tensors, at most", 8),
    "pair count 2^64-1": (replace(GOOD, pair_count=MAX_U64).build(), "metadata pairs, at most", 16),
    "pair count one above the limit": (replace(GOOD, pair_count=4_097).build(), "metadata pairs, at most", 16),
    "more pairs than there are": (replace(GOOD, pair_count=len(BASE_PAIRS) + 1).build(), "a string of", None),
    "more tensors than there are": (replace(GOOD, tensor_count=3, data=b"").build(), "printable ASCII", None),
    "no tensors": (replace(GOOD, tensors=(), data=b"").build(), "without tensors", 8),
    # Keys
    "key length 2^64-1": (replace(GOOD, pairs=(u64(MAX_U64) + b"x",)).build(), "a string of", HEADER),
    "key longer than allowed": (replace(GOOD, pairs=(pair("k" * 1025, U32, 1),)).build(), "a string of 1025", HEADER),
    "key past the end": (replace(GOOD, pairs=(u64(1000),), tensors=(), data=b"").build(), "the file ends", HEADER + 8),
    "empty key": (replace(GOOD, pairs=(pair("", U32, 1),)).build(), "printable ASCII", HEADER),
    "key with NUL": (replace(GOOD, pairs=(pair("general\0x", U32, 1),)).build(), "printable ASCII", HEADER),
    "key not ASCII": (replace(GOOD, pairs=(pair("génèral", U32, 1),)).build(), "printable ASCII", HEADER),
    "key not UTF-8": (replace(GOOD, pairs=(pair(b"\xff\xfe", U32, 1),)).build(), "printable ASCII", HEADER),
    "key twice": (GOOD.adding(pair("general.name", STRING, "x")), "'general.name' appears twice", PAIRS_END),
    "uninteresting key twice": (GOOD.adding(pair("a", U8, 1), pair("a", U8, 1)), "'a' appears twice", None),
    # Values
    "value type 13": (GOOD.adding(text("x") + u32(13) + u64(0)), "unknown value type 13", PAIRS_END + 9),
    "value type 2^32-1": (GOOD.adding(text("x") + u32(0xFFFFFFFF)), "unknown value type", None),
    "truth value 2": (GOOD.adding(text("x") + u32(BOOL) + b"\2"), "truth value", PAIRS_END + 13),
    "string value 2^63": (GOOD.adding(text("x") + u32(STRING) + u64(1 << 63)), "a string of", PAIRS_END + 13),
    "string value that wraps": (GOOD.adding(text("x") + u32(STRING) + u64(MAX_U64 - 7)), "a string of", None),
    "string value past the end": (GOOD.adding(text("x") + u32(STRING) + u64(1 << 20)), "the file ends", None),
    "template not UTF-8": (
        GOOD.replacing("tokenizer.chat_template", pair("tokenizer.chat_template", STRING, b"{\xc3")),
        "not UTF-8",
        None,
    ),
    # Arrays
    "array of arrays": (GOOD.adding(text("x") + u32(ARRAY) + u32(ARRAY) + u64(1)), "an array of arrays", None),
    "array element type 99": (GOOD.adding(text("x") + u32(ARRAY) + u32(99) + u64(1)), "unknown element type", None),
    "array of 2^64-1 numbers": (GOOD.adding(text("x") + u32(ARRAY) + u32(U64) + u64(MAX_U64)), "the file ends", None),
    "array whose size wraps": (GOOD.adding(text("x") + u32(ARRAY) + u32(U64) + u64(1 << 61)), "the file ends", None),
    "array of 2^60 strings": (GOOD.adding(text("x") + u32(ARRAY) + u32(STRING) + u64(1 << 60)), "the file ends", None),
    "array of 2^40 truth values": (GOOD.adding(text("x") + u32(ARRAY) + u32(BOOL) + u64(1 << 40)), "the file", None),
    "array of odd truth values": (GOOD.adding(array("x", BOOL, [0, 1, 3])), "truth value", None),
    "array cut in a string": (
        GOOD.adding(text("x") + u32(ARRAY) + u32(STRING) + u64(2) + text("a") + u64(1 << 30)),
        "a string of",
        None,
    ),
    # What the mesh and llama.cpp rely on
    "no architecture": (replace(GOOD, pairs=BASE_PAIRS[1:]).build(), "missing", None),
    "architecture a number": (
        GOOD.replacing("general.architecture", pair("general.architecture", U32, 7)),
        "missing or not a text",
        None,
    ),
    "architecture not UTF-8": (
        GOOD.replacing("general.architecture", pair("general.architecture", STRING, b"ll\xffma")),
        "not the name",
        None,
    ),
    "architecture empty": (
        GOOD.replacing("general.architecture", pair("general.architecture", STRING, "")),
        "not the name",
        None,
    ),
    "architecture a path": (
        GOOD.replacing("general.architecture", pair("general.architecture", STRING, "../llama")),
        "not the name",
        None,
    ),
    "layers as text": (
        GOOD.replacing("llama.block_count", pair("llama.block_count", STRING, "2")),
        "not a whole number",
        None,
    ),
    "layers beyond reason": (
        GOOD.replacing("llama.block_count", pair("llama.block_count", U32, 1 << 31)),
        "not between 0 and",
        None,
    ),
    "context negative": (
        GOOD.replacing("llama.context_length", pair("llama.context_length", I32, -1)),
        "-1 is not between",
        None,
    ),
    "heads per layer for other layers": (
        GOOD.replacing("llama.attention.head_count_kv", array("llama.attention.head_count_kv", U32, [1, 2, 3])),
        "3 values for 2 layers",
        None,
    ),
    "heads per layer negative": (
        GOOD.replacing("llama.attention.head_count_kv", array("llama.attention.head_count_kv", I32, [1, -2])),
        "not between 0",
        None,
    ),
    "fewer scores than tokens": (
        GOOD.replacing("tokenizer.ggml.scores", array("tokenizer.ggml.scores", F32, [0.0])),
        "1 elements for 3 tokens",
        None,
    ),
    "fewer token types than tokens": (
        GOOD.replacing("tokenizer.ggml.token_type", array("tokenizer.ggml.token_type", I32, [1, 1])),
        "2 elements for 3 tokens",
        None,
    ),
    "tokens that are numbers": (
        GOOD.replacing("tokenizer.ggml.tokens", array("tokenizer.ggml.tokens", U32, [1, 2, 3])),
        "llama.cpp reads another type",
        None,
    ),
    "scores that are bytes": (
        GOOD.replacing("tokenizer.ggml.scores", array("tokenizer.ggml.scores", U8, [0, 0, 0])),
        "llama.cpp reads another type",
        None,
    ),
    # Alignment
    "alignment 0": (GOOD.adding(pair("general.alignment", U32, 0)), "power of two", None),
    "alignment 33": (GOOD.adding(pair("general.alignment", U32, 33)), "power of two", None),
    "alignment 2^31": (GOOD.adding(pair("general.alignment", U32, 1 << 31)), "power of two", None),
    "alignment of 64 bits": (GOOD.adding(pair("general.alignment", U64, 32)), "unsigned 32-bit", PAIRS_END + 25),
    "alignment as text": (GOOD.adding(pair("general.alignment", STRING, "32")), "not a whole number", None),
    # Tensors
    "tensor name empty": (one_tensor("", [8], 0, 0), "printable ASCII", PAIRS_END),
    "tensor name of 64 bytes": (one_tensor("t" * 64, [8], 0, 0), "a string of 64", PAIRS_END),
    "tensor name with newline": (one_tensor("a\nb", [8], 0, 0), "printable ASCII", PAIRS_END),
    "tensor twice": (two_tensors(tensor("token_embd.weight", [8], 0, 96)), "appears twice", None),
    "no dimensions": (one_tensor("t", [], 0, 0), "0 dimensions", PAIRS_END + 9),
    "five dimensions": (one_tensor("t", [1, 1, 1, 1, 1], 0, 0), "5 dimensions", PAIRS_END + 9),
    "2^32-1 dimensions": (one_tensor("t", [1], 0, 0, n_dims=0xFFFFFFFF), "dimensions", PAIRS_END + 9),
    "dimension of zero": (one_tensor("t", [8, 0], 0, 0), "dimension 1 of 0", PAIRS_END + 21),
    "dimension 2^63": (one_tensor("t", [1 << 63], 0, 0), "makes no sense", PAIRS_END + 13),
    "dimensions that wrap 64 bits": (one_tensor("t", [1 << 32, 1 << 32], 0, 0), "makes no sense", None),
    "dimensions that wrap to a small size": (
        one_tensor("t", [8, (1 << 61) + 1, 8], 0, 0),
        "makes no sense",
        None,
    ),
    "bytes that wrap 64 bits": (one_tensor("t", [1 << 62], 28, 0), "outside a file", None),
    "tensor type 4, removed": (one_tensor("t", [32], 4, 0), "unknown tensor type 4", PAIRS_END + 21),
    "tensor type 2^32-1": (one_tensor("t", [32], 0xFFFFFFFF, 0), "unknown tensor type", PAIRS_END + 21),
    "row that is no block": (one_tensor("t", [33], 2, 0), "do not divide into Q4_0 blocks", PAIRS_END + 21),
    "row shorter than a block": (one_tensor("t", [8, 32], 12, 0), "do not divide into Q4_K", None),
    "first tensor not at 0": (one_tensor("t", [8], 0, 32), "leaves a gap", PAIRS_END + 25),
    "place not aligned": (two_tensors(tensor("n", [8], 0, 97)), "not a multiple of 32", None),
    "tensors overlap": (two_tensors(tensor("n", [8], 0, 64)), "overlaps", None),
    "same place twice": (two_tensors(tensor("n", [8], 0, 0)), "overlaps", None),
    "gap between tensors": (two_tensors(tensor("n", [8], 0, 128)), "leaves a gap", None),
    "place 2^64-32": (two_tensors(tensor("n", [8], 0, MAX_U64 - 31)), "leaves a gap", None),
    "tensor larger than the file": (one_tensor("t", [1 << 40], 0, 0), "outside a file", None),
    # Length
    "one byte short": (GOOD.build()[:-1], "truncated: 1 bytes", len(GOOD.build()) - 1),
    "no data": (replace(GOOD, data=b"").build(), "truncated: 128 bytes", None),
    "one byte too many": (GOOD.build() + b"x", "1 bytes follow", len(GOOD.build())),
    "a second file appended": (GOOD.build() * 2, "bytes follow the last tensor", len(GOOD.build())),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str) -> None:
    data, reason, offset = CASES[case]
    with pytest.raises(GgufError) as caught:
        read_gguf(io.BytesIO(data), len(data))
    assert reason in caught.value.reason
    assert 0 <= caught.value.offset <= len(data)
    if offset is not None:
        assert caught.value.offset == offset
    assert f"at byte {caught.value.offset}: {caught.value.reason}" in str(caught.value)


def test_the_file_that_the_cases_break_is_itself_accepted() -> None:
    data = GOOD.build()
    assert read_gguf(io.BytesIO(data), len(data)).architecture == "llama"


def test_every_truncation_is_refused() -> None:
    data = GOOD.build()
    for length in range(len(data)):
        with pytest.raises(GgufError):
            read_gguf(io.BytesIO(data[:length]), length)


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    data = GOOD.build()
    with pytest.raises(GgufError, match="became shorter"):
        read_gguf(io.BytesIO(data[:100]), len(data))
