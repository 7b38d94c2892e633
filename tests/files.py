"""Lists and reads files that a service may be moving or removing at that moment."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def files_below(root: Path) -> list[Path]:
    """All files below a folder. A folder that is missing, or vanishes while it is listed, has none."""
    return [Path(folder, name) for folder, _, names in os.walk(root) for name in names]


def contents_below(root: Path) -> dict[Path, bytes]:
    """The content of every regular file below a folder. A file that is removed meanwhile, as SQLite does with its own, is left out."""
    found = {}
    for path in files_below(root):
        with suppress(FileNotFoundError):
            if stat.S_ISREG(path.lstat().st_mode):
                found[path] = path.read_bytes()
    return found
