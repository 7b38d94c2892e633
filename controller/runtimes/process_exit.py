"""Waits for the end of a process that is not a child of this one, such as an engine that an earlier controller started."""

from __future__ import annotations

import asyncio
import os

from llamesh import listeners
from llamesh.kit.logs import report_failure
from llamesh.processes import ProcessId

_POLL_SECONDS = 0.2


async def wait_for_exit(process: ProcessId) -> None:
    """Return when the process has ended; it need not be a child. Never fails: what cannot be waited on is asked now and then."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (
        AttributeError,
        OSError,
    ):  # not Linux, or it is gone, or the kernel has no such call, or no descriptor is free
        descriptor = -1
    try:
        # Opened by number: between the record and now it may have gone to somebody else.
        if descriptor >= 0 and process.alive:
            await listeners.readable(descriptor)
    except OSError as error:
        report_failure(f"wait for the end of process {process.pid}", error)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    while process.alive:  # noqa: ASYNC110 - there is nothing to wait on
        await asyncio.sleep(_POLL_SECONDS)
