"""Who holds a machine's memory: said wherever a start or a request is refused for lack of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llamesh.sizes import size

MOST = 3
"""So many are named."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A server that memory is promised to."""

    server_uuid: str
    model_name: str
    freed_bytes: int
    """What would be free without it."""


def largest(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    """The largest, in the same order whenever they are the same."""
    holding = (holder for holder in holders if holder.freed_bytes > 0)
    return tuple(sorted(holding, key=lambda holder: (-holder.freed_bytes, holder.server_uuid))[:MOST])


def in_words(holders: Sequence[Holder]) -> str:
    """Them as the end of a sentence; nothing if there are none."""
    if not holders:
        return ""
    named = ", ".join(f"{holder.server_uuid} ({holder.model_name}) {size(holder.freed_bytes)}" for holder in holders)
    return f"; the largest holder{'s are' if len(holders) > 1 else ' is'} {named}"
