"""Replaces paths of this machine in texts for users by the name of the setting.

Everyone who may manage servers can read engine logs, conditions and download errors, but only administrators may learn the mesh's paths and
its user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from llamesh.kit.config import Settings

HOME = "LLAMESH_HOME"


def redactor(settings: Settings) -> Callable[[str], str]:
    """Return a function that replaces the path of LLAMESH_HOME in a text."""
    names = {os.path.realpath(settings.home): HOME, str(settings.home): HOME}
    for path in (settings.run_dir, os.path.realpath(settings.run_dir)):
        names.setdefault(str(path), f"{HOME}/run")
    longest_first = sorted(names, key=len, reverse=True)
    # Match whole directories only: /data/mesh is not a part of /data/mesh2.
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})(?![\\w.-])")
    return lambda text: pattern.sub(lambda found: names[found[1]], text)
