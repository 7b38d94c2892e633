"""The form of a source that may be shown."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit


def shown_source(recorded: str) -> str:
    """A source as it may be shown: of a file only its name, because an earlier release recorded its whole URL."""
    return unquote(urlsplit(recorded).path).rpartition("/")[2] if recorded.startswith("file:") else recorded
