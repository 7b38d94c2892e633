"""The tensor infos of a GGUF header: checks type, size and place of each tensor.

llama.cpp expects tensors in the order of the header, each padded to the alignment, without gaps, and rejects any other
place. This module does the same, with numbers that cannot overflow.
"""

from typing import NamedTuple

from llamesh.kit.gguf.reader import Reader
from llamesh.kit.gguf.types import TENSOR_TYPES

_MAX_TENSOR_NAME = 63
_MAX_INT64 = (1 << 63) - 1


class TensorInfo(NamedTuple):
    """One tensor: its name, its type by name, its dimensions, shortest stride first, and the offset and size of its bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    """Offset from the beginning of the tensor data, in bytes."""
    size: int
    """Size in bytes."""


class Tensors:
    """Reads the tensor infos one by one, and adds up their sizes."""

    def __init__(self, reader: Reader, alignment: int) -> None:
        self._reader = reader
        self._seen: set[str] = set()
        self._by_type: dict[int, int] = {}
        self._next = 0
        self._end = 0
        self.alignment = alignment
        self.count = 0
        self.elements = 0
        self.bytes = 0
        self.infos: list[TensorInfo] = []

    def read_info(self) -> None:
        """Read one tensor's name, dimensions, type and offset."""
        reader = self._reader
        start = reader.offset
        name = reader.name(_MAX_TENSOR_NAME)
        if name in self._seen:
            raise reader.error(f"the tensor {name!r} appears twice", offset=start)
        self._seen.add(name)
        reader.what = f"tensor {name!r}"
        shape, elements = self._read_dimensions()
        kind, size = self._read_type(shape[0], elements)
        place = self._read_offset(size)
        self.infos.append(TensorInfo(name, kind, shape, place, size))
        self.count += 1
        self.elements += elements
        self.bytes += size

    def _read_dimensions(self) -> tuple[tuple[int, ...], int]:
        reader = self._reader
        count = reader.u32()
        if not 1 <= count <= 4:
            raise reader.error(f"{count} dimensions, 1 to 4 are allowed", offset=reader.offset - 4)
        shape, elements = [], 1
        for index in range(count):
            length = reader.u64()
            elements *= length
            if not 1 <= elements <= _MAX_INT64:
                raise reader.error(f"dimension {index} of {length} makes no sense", offset=reader.offset - 8)
            shape.append(length)
        return tuple(shape), elements

    def _read_type(self, row: int, elements: int) -> tuple[str, int]:
        reader = self._reader
        number = reader.u32()
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            raise reader.error(f"unknown tensor type {number}", offset=reader.offset - 4)
        if row % kind.elements:
            raise reader.error(
                f"rows of {row} values do not divide into {kind.name} blocks of {kind.elements}",
                offset=reader.offset - 4,
            )
        size = elements // kind.elements * kind.size
        self._by_type[number] = self._by_type.get(number, 0) + size
        return kind.name, size

    def _read_offset(self, size: int) -> int:
        reader = self._reader
        place = reader.u64()
        here = reader.offset - 8
        if place % self.alignment:
            raise reader.error(f"its place {place} is not a multiple of {self.alignment}", offset=here)
        if place < self._next:
            raise reader.error(f"its place {place} overlaps the tensor before it", offset=here)
        if place > self._next:
            raise reader.error(
                f"its place {place} leaves a gap: the tensor before it ends at {self._next}", offset=here
            )
        self._end = place + size
        self._next = _padded(self._end, self.alignment)
        if self._end > reader.size:
            words = f"its {size} bytes at {place} lie outside a file of {reader.size} bytes"
            # The data begins behind the header, which is not read to its end yet.
            if reader.size_known:
                words += f": the file is truncated, at least {self._end - reader.size + here} bytes are missing"
            raise reader.error(words, offset=here)
        return place

    def check_place(self) -> int:
        """Check that the tensor data is inside the file and that only padding follows it. Raises GgufError. Returns its offset.

        A file of unknown size gets the least that it can have.
        """
        reader = self._reader
        reader.what = "tensor data"
        start = _padded(reader.offset, self.alignment)
        if not reader.size_known:
            reader.size = start + self._end
            return start
        if self.count and start + self._end > reader.size:
            missing = start + self._end - reader.size
            raise reader.error(f"the file is truncated: {missing} bytes of tensor data are missing", offset=reader.size)
        if reader.size > start + self._next:
            extra = reader.size - start - self._next
            raise reader.error(f"{extra} bytes follow the last tensor", offset=start + self._next)
        return start

    def main_type(self) -> str:
        """Return the name of the type with most bytes; empty if there are no tensors."""
        if not self._by_type:
            return ""
        return TENSOR_TYPES[max(self._by_type, key=self._by_type.__getitem__)].name


def _padded(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
