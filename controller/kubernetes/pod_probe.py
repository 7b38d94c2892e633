"""Asks an engine in a pod over HTTP: its load and its counters."""

from __future__ import annotations

import asyncio

from controller.runtimes import EngineLoad
from llamesh.kit import engine_http
from llamesh.kit.occupancy import METRICS_PATH, Counters

SECONDS = 2.0
"""Timeout of one request, in seconds."""


class PodProbe:
    """Asks engines by their addresses, host:port."""

    async def load(self, address: str) -> EngineLoad | None:
        """Return the load of an engine; None if it does not answer.

        llama.cpp's own counters say whether it works. Connections of clients cannot be counted from outside the pod, so a request that is
        still being tokenized is not seen; the engine's own drain, inside the pod, counts them.
        """
        body = await self.metrics(address)
        try:
            found = Counters.read(body) if body is not None else None
        except ValueError:
            return None
        return EngineLoad(found.requests > 0, found.work) if found else None

    async def metrics(self, address: str) -> bytes | None:
        """Return the inference loop's metrics in Prometheus' text format; None if it does not answer in time."""
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(SECONDS):
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                status, body = await engine_http.get(reader, writer, METRICS_PATH)
        except (OSError, TimeoutError):
            return None
        return body if status == 200 else None
