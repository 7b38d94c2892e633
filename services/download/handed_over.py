"""Removes the files that the command has handed over for a fetch or a job that has ended.

The command links a file of its user, or the files of a folder, into LLAMESH_HOME/import/handed-over, and removes the link after the fetch.
If the command was interrupted or killed, or a job uses the files, this module removes them. Invariant: a file of a transfer or a job that
has not ended, or that was linked a moment ago, stays.
"""

from __future__ import annotations

import math
import shutil
import stat
import time
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamesh.file_holds import RemovalLock
from llamesh.kit.logs import log

SWEEP_SECONDS = 60.0
"""Seconds between two searches for unused files."""
GRACE_SECONDS = 300.0
"""Seconds for which a file without a transfer or a job stays: its command may be about to start one."""
MAX_ENTRIES = 10_000
"""Maximum number of entries of a folder that are looked at. A checkpoint has some hundred."""


def remove_unused(directory: Path, sources: Collection[str], now: float | None = None) -> list[Path]:
    """Remove the folders of `directory` that contain none of the sources, and return them."""
    now = time.time() if now is None else now
    used = {Path(unquote(urlsplit(source).path)).parent for source in sources if source.startswith("file:")}
    removed = []
    for folder in sorted(directory.iterdir()) if directory.is_dir() else ():
        if folder not in used and _removed(folder, now):
            log.info("handed over file removed", folder=folder.name)
            removed.append(folder)
    return removed


def _removed(folder: Path, now: float) -> bool:
    """Remove a folder, unless it was changed a moment ago or a command brings files into it now. Return whether it was removed."""
    lock = RemovalLock.of(folder)
    if lock is None:
        return False
    try:
        if now - _changed(folder) <= GRACE_SECONDS:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        lock.end()


def _changed(folder: Path) -> float:
    """Return when the folder or anything below it was last linked or written, in seconds since 1970; infinity if that is not known.

    A file with further links does not count: each new link to it, which another folder may get, changes it too. The link that this folder
    got has changed the folder.
    """
    try:
        # The files of a checkpoint lie in a folder of their own.
        stats = [item.lstat() for item in (folder, *islice(folder.rglob("*"), MAX_ENTRIES))]
        return max(it.st_ctime for it in stats if stat.S_ISDIR(it.st_mode) or it.st_nlink == 1)
    except OSError:
        # An entry gets another name when its copy is complete.
        return math.inf
