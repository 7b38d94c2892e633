"""The mark in a home that a restore fills in place, because its folder existed before.

Invariant: the mark is there before the first file and goes after the last one. A home with a mark is incomplete: only another restore may
write to it.
"""

from __future__ import annotations

import os
from pathlib import Path

REMEDY = "`llamesh restore FILE` makes it whole: it removes what the restore of before has written"


class HalfRestoredError(Exception):
    """A home that a restore has not filled."""

    def __init__(self, home: Path) -> None:
        super().__init__(f"{home} is incomplete: a restore has not ended, or runs now")
        self.remedy = REMEDY


def path_of(home: Path) -> Path:
    """Return the path of the mark."""
    return home / ".restore.unfinished"


def check(home: Path) -> None:
    """HalfRestoredError if there is a mark."""
    # A home that cannot be entered is the caller's to report.
    if os.path.exists(path_of(home)):  # noqa: PTH110 Path.exists raises for it
        raise HalfRestoredError(home)
