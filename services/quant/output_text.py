"""Texts of programs and clusters, as they are stored and shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text without control characters: databases refuse some, and terminals obey others."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)
