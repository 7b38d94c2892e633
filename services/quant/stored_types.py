"""In which types the weights of a checkpoint are stored, from the header of a safetensors file. No I/O.

A file begins with the length of its header in 8 bytes, then a JSON object with `dtype` and `data_offsets` of each tensor. The type that
config.json names is the one in which the model was trained or last saved, and need not be that of the files.

Invariant: the header is read without trust, in bounded time and memory. What it says changes an estimate by a factor of two at most,
because each weight has 2 or 4 bytes; the conversion reads the headers strictly (`services.quant.step.safetensors_files`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from services.quant.checkpoint_config import WIDTHS, stored_type
from services.quant.step.untrusted_json import MAX_MARKS_OF_A_CALL, parse_json

MAX_HEADER_BYTES = 4 << 20
"""Maximum length of a header: 256 bytes for each tensor that a model may have. Real files with thousands of tensors have less than one
MiB."""
_LENGTH_BYTES = 8
_MAX_DATA = 1 << 50


def bytes_to_read(beginning: bytes | bytearray) -> int:
    """Return the number of bytes of a file up to the end of its header, as its `beginning` says; 0 if the header is too long."""
    if len(beginning) < _LENGTH_BYTES:
        return _LENGTH_BYTES
    length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    return _LENGTH_BYTES + length if length <= MAX_HEADER_BYTES else 0


def bytes_of_types(beginning: bytes) -> Mapping[str, int]:
    """Return the bytes of the weights of a file by their type: BF16, F16 and F32. Empty if its header cannot be read.

    `beginning` has at least `bytes_to_read` bytes of the file.
    """
    end = bytes_to_read(beginning)
    if not _LENGTH_BYTES < end <= len(beginning):
        return {}
    found = Counter[str]()
    try:
        for fields in parse_json(beginning[_LENGTH_BYTES:end], MAX_MARKS_OF_A_CALL).values():
            of_type, (begin, after) = fields.get("dtype"), fields.get("data_offsets", (0, 0))
            if of_type in WIDTHS and type(begin) is int and type(after) is int and 0 <= begin < after <= _MAX_DATA:
                found[of_type] += after - begin
    except (AttributeError, TypeError, ValueError):
        return {}
    return found


def weights_of(types: Mapping[str, int], config: Mapping[str, Any], sampled: int, rest: int = 0) -> tuple[str, int]:
    """Return the type of most weights of a checkpoint and their number, the larger one of two estimates.

    The other files may have the types of the first one, and config.json be wrong, or that of config.json and the first file differ.

    Args:
        types: the bytes of weights in the first file by their type; if there are none, the type is that of `config`.
        config: the parsed config.json.
        sampled: bytes of the weights of the first file.
        rest: bytes of the weights of all other files.
    """
    named = {stored_type(config): 1}
    alike = _numbers(types or named, sampled + rest)
    unlike = _numbers(types or named, sampled)
    unlike.update(_numbers(named, rest))
    numbers = max(alike, unlike, key=lambda each: sum(each.values()))
    return max(numbers, key=lambda of_type: numbers[of_type]), sum(numbers.values())


def _numbers(types: Mapping[str, int], size: int) -> Counter[str]:
    """Return the numbers of weights by their type, rounded up, in `size` bytes that are divided among the types in this proportion."""
    total = sum(types.values())
    return Counter({of_type: -(-size * part // (total * WIDTHS[of_type])) for of_type, part in types.items()})
