"""A model's name out of a file's name: what the contract allows, made of whatever the source calls its file."""

from __future__ import annotations

import re

_FOREIGN = re.compile(r"[^A-Za-z0-9._:/@+-]+")
_LONGEST = 128


def name_for(file_name: str, fallback: str) -> str:
    """The file's name with foreign characters as dashes; `fallback` where nothing is left of it."""
    name = _FOREIGN.sub("-", file_name.rpartition("/")[2]).lstrip("._:/@+-")[:_LONGEST]
    return name or fallback
