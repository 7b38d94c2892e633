"""Probes an engine over HTTP on its Unix socket: readiness and counters."""

from __future__ import annotations

import asyncio
import contextlib
import errno

from llamesh.kit import engine_http
from llamesh.kit.occupancy import METRICS_PATH, Counters

SECONDS = 2.0
"""Timeout of one request, in seconds."""
_RETRY_SECONDS = 0.02
_QUEUE_FULL = (errno.EAGAIN, errno.ENOTCONN)
"""Errors of connect while the engine's backlog is full. asyncio's event loop reports the second one."""
_NO_LISTENER = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ENOTSOCK, errno.EPROTOTYPE)


class UnreachableError(ConnectionError):
    """No process listens at the engine's address."""


async def is_ready(socket: str) -> bool:
    """Return whether the model is loaded and requests are answered."""
    with contextlib.suppress(OSError, TimeoutError):
        status, _ = await _get(socket, "/health")
        return status == 200
    return False


async def metrics(socket: str) -> bytes | None:
    """Return the inference loop's metrics in Prometheus' text format; None if it does not answer in time. Raises UnreachableError.

    An OSError is no statement about the engine: this process lacks a resource, such as a free descriptor.
    """
    try:
        status, body = await _get(socket, METRICS_PATH)
        return body if status == 200 else None
    except (TimeoutError, ConnectionResetError, BrokenPipeError):
        return None


async def counters(socket: str) -> Counters | None:
    """Return the counters that the mesh uses; None if the engine does not answer in time. Raises the errors of `metrics`."""
    body = await metrics(socket)
    try:
        return None if body is None else Counters.read(body)
    except ValueError:
        return None


async def _get(socket: str, path: str) -> tuple[int, bytes]:
    """Send a GET request. Waits while the engine's backlog is full."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await _ask(socket, path)
            except OSError as error:
                if error.errno not in _QUEUE_FULL:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)


async def _ask(socket: str, path: str) -> tuple[int, bytes]:
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError as error:
        if error.errno in _NO_LISTENER:
            raise UnreachableError(error.errno, f"no process listens at {socket}") from error
        raise
    return await engine_http.get(reader, writer, path)
