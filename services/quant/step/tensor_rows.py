"""Rows of tensors in a GGUF file, and the same rows as a second build of llama.cpp quantises them.

Rows are quantised one by one and independently, so that a part of a tensor is enough for a comparison, however large the tensor is.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy

from llamesh.kit.gguf import TensorInfo

MOST_WEIGHTS = 1 << 22
"""Weights of a tensor that are compared."""


def row_count(info: TensorInfo) -> int:
    """Number of rows, those of all matrices of a tensor with more than two dimensions."""
    return math.prod(info.shape[1:])


def sample_of(info: TensorInfo, seed: int) -> tuple[int, int]:
    """First row and number of rows that stand for a tensor."""
    count = min(row_count(info), max(1, MOST_WEIGHTS // info.shape[0]))
    return seed % (row_count(info) - count + 1), count


def stored_rows(path: Path, info: TensorInfo, first: int, count: int) -> Any:
    """The bytes of some rows, one row a line."""
    width = info.size // row_count(info)
    mapped = numpy.memmap(path, numpy.uint8, "r", offset=info.offset + first * width, shape=(count, width))
    return numpy.array(mapped)


def weights_of(rows: Any, of_type: str) -> Any:
    """The weights of stored rows as 32-bit numbers."""
    return numpy.ascontiguousarray(gguf.quants.dequantize(rows, _kind(of_type)), dtype=numpy.float32)


def quantised(weights: Any, of_type: str) -> Any:
    """The bytes that llama.cpp's library of the engine makes of weights."""
    if of_type in ("F32", "F16", "BF16"):
        return gguf.quants.quantize(weights, _kind(of_type)).view(numpy.uint8)
    kind = _kind(of_type)
    made = numpy.empty(gguf.quants.quant_shape_to_byte_shape(weights.shape, kind), numpy.uint8)
    _library().ggml_quantize_chunk(
        int(kind), weights.ctypes.data, made.ctypes.data, 0, weights.shape[0], weights.shape[1], None
    )
    return made


def relative_error(rows: Any, of_type: str, weights: Any) -> float:
    """Root of the mean squared error of stored rows, relative to that of the weights; 0 for all weights zero."""
    scale = float(numpy.sqrt(numpy.mean(weights**2)))
    return float(numpy.sqrt(numpy.mean((weights_of(rows, of_type) - weights) ** 2))) / scale if scale else 0.0


def _kind(of_type: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[of_type]


@cache
def _library() -> ctypes.CDLL:
    found = importlib.util.find_spec("xllamacpp")
    assert found is not None
    assert found.origin is not None
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library
