"""Deletes a folder that running programs write to."""

from __future__ import annotations

import shutil
from pathlib import Path


def vanish(folder: Path) -> None:
    """Delete a folder at once: it is renamed first, so no file that is written meanwhile keeps it from being deleted."""
    renamed = folder.with_name(f"{folder.name}.deleted")
    folder.rename(renamed)
    shutil.rmtree(renamed)
