"""What leaves the mesh in words: paths of this machine stand in it by the name of their setting.

Everyone who may manage servers can read engine logs, conditions and download errors. Only administrators may learn the mesh's paths and
user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from llamesh.kit.config import Settings

HOME = "LLAMESH_HOME"


def redactor(settings: Settings) -> Callable[[str], str]:
    """A function that puts LLAMESH_HOME into a text where its path stands."""
    names = {os.path.realpath(settings.home): HOME, str(settings.home): HOME}
    for path in (settings.run_dir, os.path.realpath(settings.run_dir)):
        names.setdefault(str(path), f"{HOME}/run")
    longest_first = sorted(names, key=len, reverse=True)
    # Whole folders only: /data/mesh is no part of /data/mesh2.
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})(?![\\w.-])")
    return lambda text: pattern.sub(lambda found: names[found[1]], text)
