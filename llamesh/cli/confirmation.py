"""Asks a person before a command removes several things."""

from __future__ import annotations

import sys

from llamesh.cli.failure import CommandError, Exit


def confirmed(question: str, unasked: str) -> bool:
    """Ask a question in the terminal; False is the default. `unasked` is the command that does not ask, named if there is no terminal."""
    if not sys.stdin.isatty():
        raise CommandError("there is no terminal to ask in", hint=unasked, code=Exit.USAGE)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
