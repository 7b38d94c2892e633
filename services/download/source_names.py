"""Recorded sources: the form that may be shown, and whether an address is the same source."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from llamesh.model_addresses import canonical


def shown_source(recorded: str) -> str:
    """Return a source as it may be shown: only the name of a file, because an earlier release recorded its whole URL."""
    return unquote(urlsplit(recorded).path).rpartition("/")[2] if recorded.startswith("file:") else recorded


def same_source(requested: str, recorded: str) -> bool:
    """Return whether a canonical address is the recorded source, which an earlier release recorded as written; "" is any source."""
    if requested in ("", recorded):
        return True
    try:
        return requested == canonical(recorded)
    except ValueError:
        return False
