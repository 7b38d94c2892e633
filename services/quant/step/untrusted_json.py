"""Parses JSON of strangers in bounded memory.

A parsed document may need thirty times the memory of its text: `[],` is an object of 64 bytes. Invariant: a text is parsed only if its
length and the number of its elements are within bounds that real files keep.
"""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 48 << 20
"""Maximum length of a text. The largest tokenizer.json, that of Gemma 3 with 262,144 tokens, has 32 MiB."""
MAX_MARKS = 3_000_000
"""Maximum number of commas and opening brackets, one of which is before each element. The largest tokenizer.json has 1.9 million."""

MAX_MARKS_OF_A_CALL = 200_000
"""The same for a text that the service parses for a call. Python parses without letting go of its lock, also in a thread, so the process
answers nobody meanwhile: 0.2 s where measured. The header of 16,384 tensors has 150,000."""


def check_bounds(data: bytes | bytearray, max_marks: int = MAX_MARKS) -> None:
    """Raise ValueError if a text of JSON is larger than the bounds."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    if sum(map(data.count, (b",", b"[", b"{"))) > max_marks:
        raise ValueError(f"it has more than {max_marks:,} elements")


def parse_json(data: bytes | bytearray, max_marks: int = MAX_MARKS) -> Any:
    """Return the parsed document. Raises ValueError if it is no JSON, nested too deep, or larger than the bounds."""
    check_bounds(data, max_marks)
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError:
        raise ValueError("it is no JSON") from None
