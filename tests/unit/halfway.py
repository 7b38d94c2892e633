"""Processes that a test looks at halfway: in the middle of its work a process prints `waits`, and it goes on after a line of input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def halfway(code: str, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code with these arguments, and yield once it waits. It is killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            yield process
        finally:
            process.kill()
