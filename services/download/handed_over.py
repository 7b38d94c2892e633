"""Removes the files that the command has handed over for a fetch or a job that has ended.

The command links a file of its user, or the files of a folder, into LLAMESH_HOME/import/handed-over, and removes the link after the fetch.
If the command was interrupted or killed, or a job uses the files, this module removes them. Invariant: a file of a transfer or a job that
has not ended, or that was linked a moment ago, stays.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamesh.kit.logs import log

SWEEP_SECONDS = 60.0
"""Seconds between two searches for unused files."""
GRACE_SECONDS = 300.0
"""Seconds for which a file without a transfer or a job stays: its command may be about to start one."""


def remove_unused(directory: Path, sources: Collection[str], now: float | None = None) -> list[Path]:
    """Remove the folders of `directory` that contain none of the sources, and return them."""
    now = time.time() if now is None else now
    used = {Path(unquote(urlsplit(source).path)).parent for source in sources if source.startswith("file:")}
    removed = []
    for folder in sorted(directory.iterdir()) if directory.is_dir() else ():
        if folder not in used and now - _changed(folder) > GRACE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
            log.info("handed over file removed", folder=folder.name)
            removed.append(folder)
    return removed


def _changed(folder: Path) -> float:
    """Return when the folder or a file in it was last linked or written."""
    try:
        return max(item.stat().st_ctime for item in (folder, *folder.iterdir()))
    except OSError:
        return 0.0
