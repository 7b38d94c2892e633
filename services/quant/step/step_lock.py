"""The lock of a step in the folder of its job: a step writes files that the same step of another process would write too.

A step ends with its service, but where the kernel does not kill it then (`llamesh.tether`), a stopped process (SIGSTOP) does nothing, not
even that, until it is continued. So a step that finds the lock held kills the holder. Invariant: while a program of a step has the lock, no
other program of this step of the job writes.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from llamesh import locks
from llamesh.processes import ProcessId


def take_lock(path: Path) -> int:
    """Take the lock until the descriptor that this returns is closed. Kill the process of this machine that holds it. Raises OSError.

    A holder in another container cannot be seen: this waits until it has ended.
    """
    descriptor = locks.open_file(path)
    if not locks.take(descriptor):
        if earlier := locks.holder(descriptor):
            # A step leads its process group, in which its programs are.
            with suppress(ProcessLookupError):
                os.killpg(earlier.pid, signal.SIGKILL)
        locks.wait(descriptor)
    locks.write_holder(descriptor, asdict(ProcessId.of(os.getpid())))
    return descriptor
