"""The servers that hold a machine's memory, for messages that refuse a start or a request for lack of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llamesh.sizes import size

MAX_SHOWN = 3
"""Maximum number of holders that a message names."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A server that has reserved memory."""

    server_uuid: str
    model_name: str
    freed_bytes: int
    """Bytes that become free if it ends."""


def largest(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    """Return the largest holders in a stable order."""
    holding = (holder for holder in holders if holder.freed_bytes > 0)
    return tuple(sorted(holding, key=lambda holder: (-holder.freed_bytes, holder.server_uuid))[:MAX_SHOWN])


def in_words(holders: Sequence[Holder]) -> str:
    """Return the holders as the end of a sentence; empty if there are none."""
    if not holders:
        return ""
    named = ", ".join(f"{holder.server_uuid} ({holder.model_name}) {size(holder.freed_bytes)}" for holder in holders)
    return f"; the largest holder{'s are' if len(holders) > 1 else ' is'} {named}"
