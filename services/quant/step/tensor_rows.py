"""Rows of tensors in a GGUF file, and the same rows quantised by a second build of llama.cpp.

Rows are quantised independently, so a part of a tensor is enough for a comparison, even if the tensor is large.
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

MAX_WEIGHTS = 1 << 22
"""Maximum number of weights of a tensor that are compared."""


def row_count(info: TensorInfo) -> int:
    """Return the number of rows: of all matrices if a tensor has more than two dimensions."""
    return math.prod(info.shape[1:])


def sample_of(info: TensorInfo, seed: int) -> tuple[int, int, int]:
    """Return the matrix of a tensor that is sampled, the first row of the sample in the tensor, and its number of rows."""
    rows = info.shape[1] if len(info.shape) > 1 else 1
    matrix = seed % (row_count(info) // rows)
    count = min(rows, max(1, MAX_WEIGHTS // info.shape[0]))
    return matrix, matrix * rows + seed % (rows - count + 1), count


def block_of(of_type: str) -> int:
    """Return the number of weights that a type of tensors or files stores together. A row has to divide into it."""
    kind = gguf.GGMLQuantizationType.__members__.get(of_type)
    # A type that only files have, such as Q4_K_M, mixes types with blocks of this size.
    return gguf.GGML_QUANT_SIZES[kind][0] if kind is not None else gguf.QK_K


def stored_rows(path: Path, info: TensorInfo, first: int, count: int) -> Any:
    """Return the bytes of some rows, one line for each row."""
    width = info.size // row_count(info)
    mapped = numpy.memmap(path, numpy.uint8, "r", offset=info.offset + first * width, shape=(count, width))
    return numpy.array(mapped)


def weights_of(rows: Any, of_type: str) -> Any:
    """Return the weights of stored rows as 32-bit numbers."""
    return numpy.ascontiguousarray(gguf.quants.dequantize(rows, _kind(of_type)), dtype=numpy.float32)


def quantised(weights: Any, of_type: str, importance: Any = None) -> Any:
    """Return the weights quantised by the engine's llama.cpp library, as bytes. `importance` is that of each column, if it is known."""
    if of_type in ("F32", "F16", "BF16"):
        return gguf.quants.quantize(weights, _kind(of_type)).view(numpy.uint8)
    kind = _kind(of_type)
    made = numpy.empty(gguf.quants.quant_shape_to_byte_shape(weights.shape, kind), numpy.uint8)
    _library().ggml_quantize_chunk(
        int(kind),
        weights.ctypes.data,
        made.ctypes.data,
        0,
        weights.shape[0],
        weights.shape[1],
        None if importance is None else importance.ctypes.data,
    )
    return made


def relative_error(rows: Any, of_type: str, weights: Any) -> float:
    """Return the root of the mean squared error of stored rows, relative to the weights; 0 if all weights are zero."""
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
