"""Asks an engine in a pod over HTTP, by its address host:port."""

from __future__ import annotations

import asyncio

from controller.runtimes.probe import SECONDS, UnreachableError
from llamesh.addresses import host_and_port
from llamesh.kit import engine_http
from llamesh.kit.occupancy import METRICS_PATH, Counters


async def metrics(address: str) -> bytes | None:
    """Return the inference loop's metrics in Prometheus' text format; None if it does not answer in time.

    Raises UnreachableError if nothing listens there.
    """
    host, port = host_and_port(address)
    try:
        async with asyncio.timeout(SECONDS):
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except ConnectionRefusedError as error:
                raise UnreachableError(error.errno, f"nothing listens at {address}") from error
            status, body = await engine_http.get(reader, writer, METRICS_PATH)
    except UnreachableError:
        raise
    except (OSError, TimeoutError):
        return None
    return body if status == 200 else None


async def counters(address: str) -> Counters | None:
    """Return the counters that the mesh uses; None if the engine does not answer in time. Raises UnreachableError."""
    body = await metrics(address)
    try:
        return None if body is None else Counters.read(body)
    except ValueError:
        return None
