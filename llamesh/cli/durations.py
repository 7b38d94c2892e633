"""Options of commands that are lengths of time (llamesh/durations.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llamesh.durations import seconds, written

if TYPE_CHECKING:
    from cyclopts import Token

NEVER, DEFAULT = "never", "default"
"""Words for zero, in which the contract says that a server never sleeps, or has the default wake budget."""


def _converted(_: object, tokens: Sequence[Token]) -> float:
    return seconds(tokens[0].value)


def _or_zero(word: str) -> Callable[[object, Sequence[Token]], float]:
    """A converter for which a word means zero, too."""
    return lambda _, tokens: 0.0 if tokens[0].value.strip().lower() == word else seconds(tokens[0].value)


Duration = Annotated[float, Parameter(converter=_converted, metavar="TIME", show_default=written)]
"""An option that is a length of time."""
IdleSleep = Annotated[float, Parameter(converter=_or_zero(NEVER), metavar="TIME", show_default=written)]
"""The option --idle-sleep: a length of time, or `never`."""
MaybeIdleSleep = Annotated[float | None, Parameter(converter=_or_zero(NEVER), metavar="TIME")]
"""The same option, which may be absent."""
MaybeWakeBudget = Annotated[float | None, Parameter(converter=_or_zero(DEFAULT), metavar="TIME")]
"""The option --wake-budget, which may be absent: a length of time, or `default`."""
