"""Lengths of time as people write them: `90`, `30s`, `10m`, `1h30m`, `2d`. A number alone is seconds, as everywhere in the contract."""

from __future__ import annotations

import re

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
MAX_SECONDS = 36500 * _UNITS["d"]
"""Maximum length of a duration: a hundred years. A longer one is a mistake."""


def seconds(words: str) -> float:
    """Return the length in seconds. ValueError if the text is not a length of time."""
    found = _PARTS.fullmatch(words.strip().lower())
    if found is None or not any(found.groups()):
        raise ValueError(f"{words!r} is not a length of time like 30s, 10m or 1h30m")
    length = sum(float(count) * unit for count, unit in zip(found.groups(), _UNITS.values(), strict=True) if count)
    if length > MAX_SECONDS:
        raise ValueError(f"{words!r} is longer than a hundred years")
    return length


def written(length: float) -> str:
    """Return a length in seconds in the form that `seconds` reads: 600 is 10m. Fractions of a second are kept."""
    words, rest = [], length
    for unit, worth in _UNITS.items():
        count = rest if unit == "s" else rest // worth
        rest -= count * worth
        if count:
            words.append(f"{count:g}{unit}")
    return "".join(words) or "0s"
