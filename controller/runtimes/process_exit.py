"""Waits for the end of a process that is not a child of this one, such as an engine that an earlier controller started."""

from __future__ import annotations

import asyncio
import os

from llamesh import listeners
from llamesh.kit.logs import report_failure
from llamesh.processes import ProcessId

_POLL_SECONDS = 0.2


async def wait_for_exit(process: ProcessId) -> None:
    """Wait until the process has ended; it need not be a child. Never fails: without a pidfd the process is polled."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        # Not Linux, an old kernel, no free descriptor, or the process has ended.
        descriptor = -1
    try:
        # The pidfd was opened by process id, which another process may have received since the record was written.
        if descriptor >= 0 and process.alive:
            await listeners.readable(descriptor)
    except OSError as error:
        report_failure(f"wait for the end of process {process.pid}", error)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    while process.alive:  # noqa: ASYNC110 - there is nothing to wait on
        await asyncio.sleep(_POLL_SECONDS)
