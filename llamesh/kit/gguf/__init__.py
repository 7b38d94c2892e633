"""Strict parser for GGUF headers: the check that every file passes before it becomes a model.

llama.cpp parses these files in C++, trusts them, and had many overflows. So this parser rejects what llama.cpp would reject, abort on or
misread: counts, lengths, types and tensor sizes are bounded, tensors lie one after the other inside the file, nothing follows them, and
names are unique.

Invariant: only the header is read, and time and memory are bounded for any file: 256 MiB of header, 4,096 metadata pairs with 1 MiB of
keys, 16,384 tensors, 2 million strings; arrays are not stored (see `reader` and `metadata`).
"""

from typing import BinaryIO

from llamesh.kit.gguf.metadata import MetadataReader
from llamesh.kit.gguf.model_metadata import GgufMetadata
from llamesh.kit.gguf.reader import GgufError, Reader
from llamesh.kit.gguf.tensors import TensorInfo, Tensors

__all__ = [
    "MAGIC",
    "MAX_TENSORS",
    "GgufError",
    "GgufMetadata",
    "TensorInfo",
    "read_gguf",
    "read_layout",
    "read_tensors",
]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
MAX_PAIRS = 4_096
"""Maximum number of metadata pairs. Real files have up to a hundred."""
MAX_TENSORS = 16_384
"""Maximum number of tensors. Real files have up to some thousands."""


def read_gguf(file: BinaryIO, size: int) -> GgufMetadata:
    """Check the header of a seekable file of `size` bytes and return its metadata. Raises GgufError."""
    return read_tensors(file, size)[0]


def read_tensors(file: BinaryIO, size: int | None) -> tuple[GgufMetadata, list[TensorInfo]]:
    """Check the header as `read_gguf`. Return the metadata, and each tensor with its offset in the file. Raises GgufError.

    A `size` of None is for a file that still arrives from a source that did not give its length: where the file ends is not checked.
    """
    version, metadata_reader, tensors, infos = _read(file, size)
    return metadata_reader.metadata(version, tensors), infos


def read_layout(file: BinaryIO, size: int) -> list[TensorInfo]:
    """Check the header of a file that is no model, such as an importance matrix, and return its tensors. Raises GgufError.

    Such a file has no architecture and may have no tensors.
    """
    return _read(file, size)[3]


def _read(file: BinaryIO, size: int | None) -> tuple[int, MetadataReader, Tensors, list[TensorInfo]]:
    reader = Reader(file, size)
    version = _version(reader)
    tensor_count = _count(reader, "tensors", MAX_TENSORS)
    pair_count = _count(reader, "metadata pairs", MAX_PAIRS)
    metadata_reader = MetadataReader(reader)
    for index in range(pair_count):
        reader.what = f"metadata pair {index}"
        metadata_reader.read_pair()
    tensors = Tensors(reader, metadata_reader.alignment())
    for index in range(tensor_count):
        reader.what = f"tensor {index}"
        tensors.read_info()
    start = tensors.check_place()
    infos = [info._replace(offset=start + info.offset) for info in tensors.infos]
    return version, metadata_reader, tensors, infos


def _version(reader: Reader) -> int:
    reader.what = "header"
    magic = reader.take(4)
    if magic != MAGIC:
        raise reader.error(f"not a GGUF file: it starts with {magic!r}", offset=0)
    version = reader.u32()
    if version & 0xFFFF == 0 and version:
        raise reader.error("a big-endian GGUF file; only little-endian ones are served", offset=4)
    if version not in _VERSIONS:
        raise reader.error(f"GGUF version {version}; versions 2 and 3 are served", offset=4)
    return version


def _count(reader: Reader, of: str, limit: int) -> int:
    count = reader.u64()
    if count > limit:
        raise reader.error(f"{count} {of}, at most {limit} are allowed", offset=reader.offset - 8)
    return count
