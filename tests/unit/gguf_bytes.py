"""Writes GGUF files byte by byte, so that tests can also write what no library would."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def scalar(kind: int, value: object) -> bytes:
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return text(value)
    return struct.pack("<" + _FORMS[kind], value)


def pair(key: str | bytes, kind: int, value: object) -> bytes:
    return text(key) + u32(kind) + scalar(kind, value)


def array(key: str, kind: int, values: list[object]) -> bytes:
    return text(key) + u32(ARRAY) + u32(kind) + u64(len(values)) + b"".join(scalar(kind, value) for value in values)


def tensor(name: str | bytes, dims: list[int], kind: int, offset: int, *, n_dims: int | None = None) -> bytes:
    count = len(dims) if n_dims is None else n_dims
    return text(name) + u32(count) + b"".join(u64(length) for length in dims) + u32(kind) + u64(offset)


BASE_PAIRS = (
    pair("general.architecture", STRING, "llama"),
    pair("general.name", STRING, "tiny"),
    pair("general.file_type", U32, 0),
    pair("llama.context_length", U32, 128),
    pair("llama.embedding_length", U32, 8),
    pair("llama.block_count", U32, 2),
    pair("llama.attention.head_count", U32, 4),
    pair("llama.attention.head_count_kv", U32, 2),
    array("tokenizer.ggml.tokens", STRING, ["a", "b", "c"]),
    array("tokenizer.ggml.scores", F32, [0.0, 0.0, 0.0]),
    array("tokenizer.ggml.token_type", I32, [1, 1, 1]),
    pair("tokenizer.chat_template", STRING, "{{ messages }}"),
)
BASE_TENSORS = (tensor("token_embd.weight", [8, 3], 0, 0), tensor("output_norm.weight", [8], 0, 96))
BASE_DATA = bytes(96 + 32)


@dataclass(frozen=True)
class File:
    """A GGUF file as its parts; whatever is not given is that of a valid one."""

    magic: bytes = b"GGUF"
    version: int = 3
    tensors: tuple[bytes, ...] = BASE_TENSORS
    pairs: tuple[bytes, ...] = BASE_PAIRS
    data: bytes = BASE_DATA
    tensor_count: int | None = None
    pair_count: int | None = None
    alignment: int = 32
    extra: tuple[bytes, ...] = field(default=())

    def header(self) -> bytes:
        pairs = self.pairs + self.extra
        return b"".join(
            (
                self.magic,
                u32(self.version),
                u64(len(self.tensors) if self.tensor_count is None else self.tensor_count),
                u64(len(pairs) if self.pair_count is None else self.pair_count),
                *pairs,
                *self.tensors,
            )
        )

    def build(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data

    def adding(self, *pairs: bytes) -> bytes:
        """The file with further metadata pairs."""
        return replace(self, extra=pairs).build()

    def replacing(self, key: str, new: bytes) -> bytes:
        """The file with the pair of that key exchanged for other bytes."""
        start = text(key)
        pairs = tuple(new if old.startswith(start) else old for old in self.pairs)
        assert pairs != self.pairs
        return replace(self, pairs=pairs).build()
