"""A mesh raises the soft limit of open files to what the system allows."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import resource
from llamesh.cli.mesh.open_files import attainable, raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
print(attainable(), raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_becomes_the_hard_one() -> None:
    shown = subprocess.run([sys.executable, "-c", CODE.format(hard=512)], capture_output=True, text=True, check=True)
    assert shown.stdout == "512 512 (512, 512)\n"
