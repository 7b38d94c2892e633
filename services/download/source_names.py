"""What a model is called, and what is said of where it came from."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

_FOREIGN = re.compile(r"[^A-Za-z0-9._:/@+-]+")
_LONGEST = 128


def name_for(file_name: str, fallback: str) -> str:
    """The file's name with foreign characters as dashes; `fallback` where nothing is left of it."""
    name = _FOREIGN.sub("-", file_name.rpartition("/")[2]).lstrip("._:/@+-")[:_LONGEST]
    return name or fallback


def shown_source(recorded: str) -> str:
    """A source as it may be shown: of a file its name alone, whose URL an earlier release has recorded."""
    return unquote(urlsplit(recorded).path).rpartition("/")[2] if recorded.startswith("file:") else recorded


def name_of_source(shown: str, fallback: str) -> str:
    """The name of a model that is not given one: that of the file in its source."""
    return name_for(unquote(urlsplit(shown).path) if "://" in shown else shown, fallback)
