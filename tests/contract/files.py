"""Lists files that a service may be moving or removing at that moment."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(root: Path) -> list[Path]:
    """All files below a folder. A folder that is missing, or vanishes while it is listed, has none."""
    return [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
