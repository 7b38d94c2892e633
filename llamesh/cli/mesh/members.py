"""Asks a program of the mesh a question that the command may not answer itself, because it does not import the server side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping


def ask(
    module: str, *arguments: str, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a module of this installation and return what it wrote. subprocess.TimeoutExpired if it takes longer."""
    return subprocess.run(
        # -P: a folder called `engine` where the command is typed is not ours.
        [sys.executable, "-P", "-m", module, *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
