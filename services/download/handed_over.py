"""Removes the files that the command has handed over for a fetch that has ended.

The command links a file of its user into LLAMESH_HOME/import/handed-over and takes the link away after the fetch. A command that was
interrupted or killed cannot: then it is done here. Invariant: a file that an active transfer reads, or that was just put there, stays.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamesh.kit.logs import log

SWEEP_SECONDS = 60.0
"""How often unused files are looked for."""
GRACE_SECONDS = 300.0
"""How long a file stays that no transfer names: its command may be about to ask for it."""


def remove_unused(directory: Path, active_sources: Collection[str], now: float | None = None) -> list[Path]:
    """Remove the folders of `directory` in which no active source lies. Returns what was removed."""
    now = time.time() if now is None else now
    used = {Path(unquote(urlsplit(source).path)).parent for source in active_sources if source.startswith("file:")}
    removed = []
    for folder in sorted(directory.iterdir()) if directory.is_dir() else ():
        if folder not in used and now - _changed(folder) > GRACE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
            log.info("handed over file removed", folder=folder.name)
            removed.append(folder)
    return removed


def _changed(folder: Path) -> float:
    """When the folder or a file of it was last linked or written."""
    try:
        return max(item.stat().st_ctime for item in (folder, *folder.iterdir()))
    except OSError:
        return 0.0
