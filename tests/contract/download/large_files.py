"""Large models of zeros that take neither memory nor disk: FAKES of a source and of a disk, around the real service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from llamesh.kit.objects.parted_file import PartedFile
from tests.unit.gguf_bytes import File, tensor

BLOCK = 1 << 20
_ZEROS = bytes(BLOCK)


class Zeros:
    """A valid GGUF file with `size` bytes of tensors, all of them zero. It is sliced like bytes."""

    def __init__(self, size: int) -> None:
        self._header = replace(File(), tensors=(tensor("token_embd.weight", [size // 4], 0, 0),), data=b"").build()
        self._size = len(self._header) + size

    @property
    def data(self) -> bytes:
        """This, for what expects bytes."""
        return cast("bytes", self)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, wanted: slice) -> bytes:
        start, stop, _ = wanted.indices(self._size)
        beginning = self._header[start:stop]
        return beginning + bytes(max(stop - start - len(beginning), 0))

    def sha256(self) -> str:
        """SHA-256 of the file."""
        digest = hashlib.sha256()
        for at in range(0, self._size, BLOCK):
            digest.update(self[at : at + BLOCK])
        return digest.hexdigest()


def keep_zeros_as_holes() -> None:
    """Let files in parts have holes where zeros are written: they read the same and take no room."""
    write = PartedFile.write

    def sparsely(self: PartedFile, offset: int, batch: Iterable[bytes]) -> int:
        for data in batch:
            if data != _ZEROS[: len(data)]:
                write(self, offset, [data])
            offset += len(data)
        return offset

    PartedFile.write = sparsely  # type: ignore[method-assign]
