"""Names of the files of a split model: `NAME-00002-of-00003.gguf`, as llama.cpp writes and expects them. Pure.

Invariant: a name, a path and an address are treated alike, because the number is at their end (before a query). The command and the
download service both find the parts of a model here.
"""

from __future__ import annotations

import re

MAX_PARTS = 256
"""Maximum number of files of a split model. Real models have up to some dozens."""

_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)(?=[?#]|$)", re.ASCII | re.IGNORECASE)


def part_of(text: str) -> tuple[int, int]:
    """Return the number of the part that a name or address names, from 1, and the number of parts; (1, 1) if it names a whole file."""
    found = _PART.search(text)
    number, count = (int(found["number"]), int(found["count"])) if found else (1, 1)
    return (number, count) if 1 <= number <= count else (1, 1)


def parts_of(text: str) -> list[str]:
    """Return the names or addresses of all parts of the model that one of them names; itself if it is a whole file.

    ValueError if there are more than MAX_PARTS.
    """
    count = part_of(text)[1]
    if count > MAX_PARTS:
        raise ValueError(f"a model in {count} parts; at most {MAX_PARTS} are taken")
    return [_numbered(text, number) for number in range(1, count + 1)] if count > 1 else [text]


def first_part(text: str) -> str:
    """Return the name or address of the first part; other texts are unchanged."""
    return _numbered(text, 1) if part_of(text)[1] > 1 else text


def whole_name(text: str) -> str:
    """Return a name without the number of a part."""
    return _PART.sub(r"\g<end>", text, count=1) if part_of(text)[1] > 1 else text


def _numbered(text: str, number: int) -> str:
    return _PART.sub(rf"-{number:05d}-of-\g<count>\g<end>", text, count=1)
