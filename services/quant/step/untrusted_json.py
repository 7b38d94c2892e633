"""Parses JSON of strangers in bounded memory.

A parsed document may need thirty times the memory of its text: `[],` is an object of 64 bytes. Invariant: a text is parsed only if its
length and the number of its elements are within bounds that real files keep, and what is returned is nested at most MAX_DEPTH levels deep,
so that whoever compares, prints or walks it does not reach Python's limit of recursion.
"""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 48 << 20
"""Maximum length of a text. The largest tokenizer.json, that of Gemma 3 with 262,144 tokens, has 32 MiB."""
MAX_MARKS = 3_000_000
"""Maximum number of commas and opening brackets, one of which is before each element. The largest tokenizer.json has 1.9 million."""

MAX_DEPTH = 32
"""Maximum number of lists and objects in each other. Real files have up to ten."""
MAX_MARKS_OF_A_CALL = 200_000
"""The same for a text that the service parses for a call. Python parses without letting go of its lock, also in a thread, so the process
answers nobody meanwhile: 0.2 s where measured. The header of 16,384 tensors has 150,000."""

_TOO_DEEP = f"it is nested too deep: more than {MAX_DEPTH} levels"


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
        found = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError:
        raise ValueError("it is no JSON") from None
    _check_depth(found)
    return found


def _check_depth(document: Any) -> None:
    """Raise ValueError if a parsed document is nested deeper than MAX_DEPTH. It takes one level after the other, without recursion."""
    level = [document]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(value for value in each.values() if isinstance(value, dict | list))
            elif isinstance(each, list):
                inner.extend(value for value in each if isinstance(value, dict | list))
        if not inner:
            return
        level = inner
    raise ValueError(_TOO_DEEP)
