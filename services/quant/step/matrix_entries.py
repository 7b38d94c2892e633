"""Reads the importance matrix that a job was given, strictly: a GGUF file of llama-imatrix, or a file of the form that it wrote before.

The older form is little-endian: the number of entries; for each entry the length of its name and the name, how often it was used, the
number of its values and as many 32-bit floats; then perhaps the number of chunks, the length of the name of the text and that name.

Invariant: every entry names a tensor of the source and has as many columns, its values are finite and not negative, and nothing of the
file is left over. The file is mapped, so memory is bounded by the largest entry. A message shows no number and no text of the file before
an entry is known to name a tensor of the source. Afterwards it shows numbers, and of texts only names that have the form of a tensor's
name: whoever names a file may not be one who may read it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from llamesh.kit.gguf import MAGIC, MAX_TENSORS, GgufError, TensorInfo, read_layout

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NAME = 255
_MAX_TEXT_NAME = 1 << 16
_TENSOR_NAME = re.compile(r"[a-z0-9_]{1,40}(?:\.[a-z0-9_]{1,40}){0,5}\.weight", re.ASCII)
_OTHER_MODEL = "it is the matrix of another model, damaged, or no file of llama-imatrix"
Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of the tensors of a model by name, shortest stride first."""


class MatrixRefusedError(ValueError):
    """The file is no importance matrix of the source."""


@dataclass(frozen=True, slots=True)
class MatrixEntry:
    """What is known of one tensor: a line of sums of squares for each of its matrices, and how often each matrix was used."""

    name: str
    sums: Any
    counts: Any


def read_entries(path: Path, shapes: Shapes) -> Sequence[MatrixEntry]:
    """Return the entries of a file. `shapes` are those of the source. Raises MatrixRefusedError, and OSError."""
    size = path.stat().st_size
    if not size:
        raise MatrixRefusedError("it is empty")
    data = numpy.memmap(path, numpy.uint8, "r")
    if bytes(data[: len(MAGIC)]) == MAGIC:
        try:
            with path.open("rb") as file:
                infos = read_layout(file, size)
        except GgufError as error:
            raise MatrixRefusedError("it is a GGUF file that is truncated or damaged") from error
        found = _of_layout(data, infos, shapes)
    else:
        found = _OlderForm(data, shapes).entries()
    if not found:
        raise MatrixRefusedError("it has no entries")
    return found


def _of_layout(data: Any, infos: Sequence[TensorInfo], shapes: Shapes) -> list[MatrixEntry]:
    by_name = {info.name: info for info in infos}
    names = {info.name.removesuffix(_SUMS) for info in infos if info.name.endswith(_SUMS)}
    counted = {info.name.removesuffix(_COUNTS) for info in infos if info.name.endswith(_COUNTS)}
    if (names | counted) and not (names | counted) & shapes.keys():
        raise _of_no_tensor()
    found = []
    for name in sorted(names | counted):
        columns, matrices = _expected(name, shapes)
        if name not in names or name not in counted:
            raise MatrixRefusedError(f"the entry {name} has no {'counts' if name in names else 'sums'}")
        sums, counts = by_name[name + _SUMS], by_name[name + _COUNTS]
        if {sums.type, counts.type} != {"F32"}:
            raise MatrixRefusedError(f"the entry {name} has the types {sums.type} and {counts.type}, not F32")
        if (sums.shape[0], math.prod(sums.shape[1:])) != (columns, matrices):
            raise _other_shape(name, "x".join(map(str, sums.shape)), columns, matrices)
        if math.prod(counts.shape) != matrices:
            raise MatrixRefusedError(
                f"the entry {name} has {math.prod(counts.shape)} counts, its tensor {matrices} matrices"
            )
        found.append(
            _checked(name, _floats(data, sums.offset, (matrices, columns)), _floats(data, counts.offset, (matrices, 1)))
        )
    return found


class _OlderForm:
    """Reads a file of the older form."""

    def __init__(self, data: Any, shapes: Shapes) -> None:
        self._data = data
        self._shapes = shapes
        self._offset = 0
        self._is_matrix = False
        """Whether an entry was found that names a tensor of the source."""

    def entries(self) -> list[MatrixEntry]:
        """Return the entries. Raises MatrixRefusedError."""
        count = self._number("the number of entries", 1, MAX_TENSORS)
        found: dict[str, MatrixEntry] = {}
        for _ in range(count):
            entry = self._entry()
            if entry.name in found:
                raise MatrixRefusedError(f"the entry {entry.name} appears twice")
            found[entry.name] = entry
        if self._offset < len(self._data):
            self._number("the number of chunks", 0, (1 << 31) - 1)
            self._skip(self._number("the length of the name of the text", 0, _MAX_TEXT_NAME))
        if self._offset < len(self._data):
            raise MatrixRefusedError(f"{len(self._data) - self._offset} bytes follow its end")
        return list(found.values())

    def _entry(self) -> MatrixEntry:
        length = self._number("the length of a name", 1, _MAX_NAME)
        start = self._skip(length)
        name = bytes(self._data[start : start + length]).decode("ascii", "replace")
        if not self._is_matrix and name not in self._shapes:
            raise _of_no_tensor()
        self._is_matrix = True
        columns, matrices = _expected(name, self._shapes)
        uses = self._number(f"the uses of {name}", 0, (1 << 31) - 1)
        values = self._number(f"the number of values of {name}", 1, (1 << 31) - 1)
        if values != columns * matrices:
            raise _other_shape(name, str(values), columns, matrices)
        start = self._skip(4 * values)
        # llama-quantize takes the values of an entry without uses as they are.
        counts = numpy.full((matrices, 1), max(uses, 1), numpy.float32)
        return _checked(name, _floats(self._data, start, (matrices, columns)), counts)

    def _number(self, what: str, least: int, most: int) -> int:
        start = self._skip(4)
        found = int.from_bytes(bytes(self._data[start : start + 4]), "little", signed=True)
        if not least <= found <= most:
            shown = f"{found}, " if self._is_matrix else ""
            raise MatrixRefusedError(
                f"{what} is {shown}not {least} to {most}: it is no file of llama-imatrix, or damaged"
            )
        return found

    def _skip(self, length: int) -> int:
        """Skip some bytes. Return where they begin."""
        start, self._offset = self._offset, self._offset + length
        if self._offset > len(self._data):
            raise MatrixRefusedError("it is truncated")
        return start


def _expected(name: str, shapes: Shapes) -> tuple[int, int]:
    """Return the columns and the number of matrices of the tensor that an entry names."""
    shape = shapes.get(name)
    if shape is None:
        shown = f"{name!r}" if _TENSOR_NAME.fullmatch(name) else "of the name of one of its entries"
        raise MatrixRefusedError(f"the source has no tensor {shown}: {_OTHER_MODEL}")
    return shape[0], math.prod(shape[2:])


def _of_no_tensor() -> MatrixRefusedError:
    return MatrixRefusedError(f"the source has no tensor of the name of its first entry: {_OTHER_MODEL}")


def _other_shape(name: str, found: str, columns: int, matrices: int) -> MatrixRefusedError:
    words = f"the entry {name} has {found} values, its tensor has {matrices} x {columns} columns"
    return MatrixRefusedError(f"{words}: it is the matrix of another model")


def _floats(data: Any, offset: int, shape: tuple[int, int]) -> Any:
    return numpy.ndarray(shape, "<f4", data, offset)


def _checked(name: str, sums: Any, counts: Any) -> MatrixEntry:
    """Return an entry whose values may be used."""
    if not (numpy.isfinite(sums).all() and numpy.isfinite(counts).all()):
        raise MatrixRefusedError(f"the entry {name} has values that are not finite")
    if (sums < 0).any() or (counts < 0).any():
        raise MatrixRefusedError(f"the entry {name} has negative values")
    used = counts[:, 0] > 0
    with numpy.errstate(over="ignore"):
        if not numpy.isfinite(sums[used] / counts[used]).all():
            raise MatrixRefusedError(
                f"the entry {name} has values that are not finite once they are divided by its uses"
            )
    return MatrixEntry(name, sums, counts)
