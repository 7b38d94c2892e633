"""Runs a module of the server side as a program, because the command does not import the server side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping


def ask(
    module: str, *arguments: str, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a module of this installation and return what it wrote. subprocess.TimeoutExpired if it takes longer.

    If the call ends early, so do the module and the programs that it has started: pg_restore would fill a database for no home.
    """
    # -P keeps the working directory out of the import path: a folder named `engine` there is not ours.
    command = [sys.executable, "-P", "-m", module, *arguments]
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, complaint = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, complaint)
