"""Lengths of time as people write them: `90`, `30s`, `10m`, `1h30m`, `2d`. A number alone is seconds, as everywhere in the contract."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts import Token

NEVER, DEFAULT = "never", "default"
"""Words for zero, in which the contract says that a server never sleeps, or has the default wake budget."""
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


def _converted(_: object, tokens: Sequence[Token]) -> float:
    return seconds(tokens[0].value)


def _or_zero(word: str) -> Callable[[object, Sequence[Token]], float]:
    """A converter for which a word means zero, too."""
    return lambda _, tokens: 0.0 if tokens[0].value.strip().lower() == word else seconds(tokens[0].value)


Duration = Annotated[float, Parameter(converter=_converted, metavar="TIME")]
"""An option that is a length of time."""
IdleSleep = Annotated[float, Parameter(converter=_or_zero(NEVER), metavar="TIME")]
"""The option --idle-sleep: a length of time, or `never`."""
MaybeIdleSleep = Annotated[float | None, Parameter(converter=_or_zero(NEVER), metavar="TIME")]
"""The same option, which may be absent."""
MaybeWakeBudget = Annotated[float | None, Parameter(converter=_or_zero(DEFAULT), metavar="TIME")]
"""The option --wake-budget, which may be absent: a length of time, or `default`."""
