"""Recorded sources: the form that may be shown, and whether an address means the same one."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from llamesh.model_addresses import canonical


def shown_source(recorded: str) -> str:
    """A source as it may be shown: of a file only its name, because an earlier release recorded its whole URL."""
    return unquote(urlsplit(recorded).path).rpartition("/")[2] if recorded.startswith("file:") else recorded


def same_source(asked: str, recorded: str) -> bool:
    """Whether a canonical address means the recorded source, which an earlier release recorded as it was given; "" means any."""
    if asked in ("", recorded):
        return True
    try:
        return asked == canonical(recorded)
    except ValueError:
        return False
