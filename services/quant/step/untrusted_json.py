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


def check_bounds(data: bytes) -> None:
    """Raise ValueError if a text of JSON is larger than the bounds."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise ValueError(f"it has more than {MAX_MARKS:,} elements")


def parse_json(data: bytes) -> Any:
    """Return the parsed document. Raises ValueError if it is no JSON, nested too deep, or larger than the bounds."""
    check_bounds(data)
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError:
        raise ValueError("it is no JSON") from None
