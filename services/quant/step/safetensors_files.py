"""Reads the headers of safetensors files, strictly: each tensor's type, shape and place.

A file begins with the length of its header in 8 bytes, then a JSON object that maps each name to `dtype`, `shape` and `data_offsets`, then
the data. The package `safetensors` cannot give BF16 to numpy; this module maps the bytes.

Invariant: the tensors of a file lie one after the other, fill it to its end, and have the sizes of their shapes. Time and memory are
bounded by the limit of a header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy

from llamesh.kit.gguf import MAX_TENSORS
from services.quant.checkpoint_config import WIDTHS, shown
from services.quant.step.untrusted_json import parse_json
from services.quant.stored_types import MAX_HEADER_BYTES

_MAX_DIMENSIONS = 4
NUMPY_TYPES: Mapping[str, str] = MappingProxyType({"F32": "<f4", "F16": "<f2", "BF16": "<u2"})
"""How numpy reads and writes the weights of a type; BF16, which it has not, as 16-bit whole numbers."""
_QUANTISED = ("F8_", "F4", "F6_", "I8", "U8", "I4", "E8M0")


class SafetensorsError(ValueError):
    """The file is not a safetensors file of weights."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file. `offset` is from the beginning of the file, in bytes; `shape` has the slowest dimension first."""

    name: str
    type: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    def mapped(self) -> Any:
        """Return the stored numbers as an array that is read from the file as it is used; BF16 as 16-bit whole numbers."""
        return numpy.memmap(self.path, NUMPY_TYPES[self.type], "r", offset=self.offset, shape=self.shape)


def read_checkpoint_tensors(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """Return the tensors of all files of a checkpoint by name. Raises SafetensorsError, and OSError."""
    found: dict[str, StoredTensor] = {}
    for path in paths:
        for tensor in read_tensors(path):
            if tensor.name in found:
                raise SafetensorsError(
                    f"{path.name}: the tensor {shown(tensor.name)} is in {found[tensor.name].path.name} too"
                )
            found[tensor.name] = tensor
        if len(found) > MAX_TENSORS:
            break
    if not 0 < len(found) <= MAX_TENSORS:
        raise SafetensorsError(f"{len(found)} tensors, from 1 to {MAX_TENSORS} are converted")
    return found


def read_tensors(path: Path) -> list[StoredTensor]:
    """Return the tensors of a file in the order of their places. Raises SafetensorsError, and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise SafetensorsError(f"{path.name}: no safetensors file, or a header of {length} bytes")
        try:
            header = parse_json(file.read(length))
        except ValueError as error:
            raise SafetensorsError(f"{path.name}: its header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise SafetensorsError(f"{path.name}: its header is no JSON object")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise SafetensorsError(f"{path.name}: {len(header)} tensors, at most {MAX_TENSORS} are converted")
    try:
        places = sorted((_place(name, fields) for name, fields in header.items()), key=lambda place: place[1])
    except (KeyError, TypeError, ValueError) as error:
        raise SafetensorsError(f"{path.name}: {error}") from error
    return _without_gaps(path, places, data=8 + length, size=size)


def _place(name: str, fields: Mapping[str, Any]) -> tuple[str, int, int, str, tuple[int, ...]]:
    """Return name, begin, end, type and shape of a tensor. Raises ValueError for one that is not sound."""
    kind, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    words = shown(name)
    if kind not in WIDTHS:
        quantised = isinstance(kind, str) and kind.startswith(_QUANTISED)
        why = "is quantised already" if quantised else f"has the type {shown(kind, longest=20)}, not BF16, F16 or F32"
        raise ValueError(f"the tensor {words} {why}")
    if len(shape) > _MAX_DIMENSIONS or not all(type(each) is int and 0 < each < 1 << 40 for each in shape):
        raise ValueError(f"the tensor {words} has no shape")
    if type(begin) is not int or type(end) is not int or end - begin != math.prod(shape) * WIDTHS[kind]:
        raise ValueError(f"the tensor {words} has another size than its shape")
    return name, begin, end, kind, shape


def _without_gaps(
    path: Path, places: Sequence[tuple[str, int, int, str, tuple[int, ...]]], *, data: int, size: int
) -> list[StoredTensor]:
    """Return the tensors of a file in the order of their places. `data` is the offset of the first, `size` that of the file's end."""
    after = 0
    found = []
    for name, begin, end, kind, shape in places:
        if begin != after:
            raise SafetensorsError(f"{path.name}: the tensor {shown(name)} does not begin where the one before it ends")
        after = end
        found.append(StoredTensor(name, kind, shape, path, data + begin))
    if data + after != size:
        raise SafetensorsError(f"{path.name} has {size} bytes, by its header it has {data + after}: it is incomplete")
    return found
