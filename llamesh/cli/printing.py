"""Writes text to standard output and standard error; every command writes through it.

Invariant: text from outside cannot control the terminal. Only `put` writes text as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from llamesh.cli.failure import visible


def say(words: str) -> None:
    """Print a line of the result."""
    put(f"{visible(words)}\n")


def note(words: str) -> None:
    """Print a line that is not the result, on standard error."""
    print(visible(words), file=sys.stderr, flush=True)


def note_all(lines: Iterable[str]) -> None:
    """Print lines that are not the result."""
    for words in lines:
        note(words)


def put(words: str) -> None:
    """Write part of the result unchanged: a model's answer on a pipe, or text that is laid out for this terminal already."""
    print(words, end="", flush=True)
