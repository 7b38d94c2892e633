"""Runs a module of the server side as a program, because the command does not import the server side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping


def ask(
    module: str, *arguments: str, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a module of this installation and return what it wrote. subprocess.TimeoutExpired if it takes longer."""
    return subprocess.run(
        # -P keeps the working directory out of the import path: a folder named `engine` there is not ours.
        [sys.executable, "-P", "-m", module, *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
