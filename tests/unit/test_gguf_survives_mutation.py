"""Whatever bytes come, the reader accepts them or raises GgufError: nothing else, not slowly, not with much memory."""

from __future__ import annotations

import contextlib
import io
import random
import time
import tracemalloc

import pytest

from llamesh.kit.gguf import GgufError, read_gguf
from tests.unit.gguf_bytes import ARRAY, STRING, File, text, u32, u64

SEED = 20_261_124
ROUNDS = 20_000
EDGES = (0, 1, 4, 31, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four wounds of the kinds that break length-prefixed formats."""
    wounded = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(wounded))
        kind = rng.randrange(6)
        if kind == 0:
            wounded[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            wounded[at : at + 8] = rng.choice(EDGES).to_bytes(8, "little")
        elif kind == 2:
            wounded[at : at + 4] = (rng.choice(EDGES) & 0xFFFFFFFF).to_bytes(4, "little")
        elif kind == 3:
            del wounded[at : at + rng.randint(1, 16)]
        elif kind == 4:
            wounded[at:at] = rng.randbytes(rng.randint(1, 16))
        else:
            start = rng.randrange(len(wounded))
            wounded[at:at] = wounded[start : start + rng.randint(1, 64)]
        if not wounded:
            wounded = bytearray(b"G")
    return bytes(wounded)


def test_mutations_end_in_acceptance_or_refusal() -> None:
    rng = random.Random(SEED)
    data = File().build()
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(ROUNDS):
            wounded = mutated(data, rng)
            # Half of the files claim to be long, so that lengths inside them are believable.
            size = len(wounded) if rng.random() < 0.5 else 1 << 38
            try:
                read_gguf(io.BytesIO(wounded), size)
            except GgufError:
                refused += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused > ROUNDS // 2
    assert peak < 16 << 20


def test_random_bytes_behind_a_good_start_end_in_refusal() -> None:
    rng = random.Random(SEED)
    for _ in range(2_000):
        data = b"GGUF" + u32(3) + u64(rng.randrange(4)) + u64(rng.randrange(1, 8)) + rng.randbytes(rng.randrange(400))
        with contextlib.suppress(GgufError):
            read_gguf(io.BytesIO(data), len(data))


def test_the_most_expensive_header_is_refused_in_seconds() -> None:
    """Empty strings are what costs most time a byte: as many as the reader allows, then one more."""
    strings = text("x") + u32(ARRAY) + u32(STRING) + u64(1_999_000) + bytes(8 * 1_999_000)
    more = b"".join(text(f"k{index}") + u32(STRING) + text("") for index in range(2_000))
    data = b"GGUF" + u32(3) + u64(1) + u64(2_001) + strings + more
    started = time.process_time()
    with pytest.raises(GgufError, match="more than 2000000 strings"):
        read_gguf(io.BytesIO(data), len(data))
    assert time.process_time() - started < 5
