"""The metrics of the whole mesh: collected from the gateway itself, the other members and Envoy, and returned as one text.

All sources are queried at the same time, and each has PATIENCE seconds to answer. Invariant: the scrape never fails because of a source. A
source that fails is left out, and its `llamesh_up` is 0. An Envoy on another machine is no source: only its own machine reaches its
statistics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from pathlib import Path

import grpc
from prometheus_client.core import GaugeMetricFamily, Metric

from llamesh.kit.exposition import labelled, merged, parsed
from llamesh.kit.logs import log
from llamesh.kit.metrics import MemberMetrics
from llamesh.v1.metrics_pb2 import CollectMetricsRequest, CollectMetricsResponse
from services.gateway import envoy_metrics
from services.gateway.members import Members

PATIENCE = 2.0
"""Seconds that one source may take to answer."""
MAX_BYTES = 16 << 20
"""Maximum size of Envoy's statistics, enough for about 10,000 servers. If they are larger, Envoy counts as a source that fails."""

_FAILURES = (grpc.aio.AioRpcError, OSError, TimeoutError, ValueError)


class MeshMetrics:
    """Collects the metrics. `envoy_admin` is the Unix socket of Envoy's admin interface. If `envoy_may_be_elsewhere`, as Envoy reaches the
    gateway over TCP, Envoy is a source only if the socket is there."""

    def __init__(
        self, own: MemberMetrics, members: Members, envoy_admin: Path, *, envoy_may_be_elsewhere: bool = False
    ) -> None:
        self._own = own
        self._members = members
        self._envoy_admin = envoy_admin
        self._envoy_may_be_elsewhere = envoy_may_be_elsewhere
        self._turn = asyncio.Lock()

    async def collect(self) -> bytes:
        """Return the metrics in Prometheus' text format. One scrape runs at a time: parallel ones would query engines more often."""
        async with self._turn:
            sources: Mapping[str, Awaitable[Sequence[Metric]]] = {
                "gateway": self._gateway(),
                **{
                    name: self._member(stub.CollectMetrics(CollectMetricsRequest(), timeout=PATIENCE), name)
                    for name, stub in self._members.metrics.items()
                },
                **({} if self._envoy_is_elsewhere() else {"envoy": self._envoy()}),
            }
            answers = await asyncio.gather(*(self._within_patience(name, ask) for name, ask in sources.items()))
        up = GaugeMetricFamily("llamesh_up", "Whether a part of the mesh returned its metrics.", labels=("source",))
        for name, answer in zip(sources, answers, strict=True):
            up.add_metric((name,), 0 if answer is None else 1)
        return merged([up, *(family for answer in answers for family in answer or ())])

    async def _within_patience(self, name: str, ask: Awaitable[Sequence[Metric]]) -> Sequence[Metric] | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await ask
        except _FAILURES as error:
            log.warning("a source returned no metrics", source=name, error=str(error))
            return None

    def _envoy_is_elsewhere(self) -> bool:
        return self._envoy_may_be_elsewhere and not self._envoy_admin.exists()

    async def _gateway(self) -> Sequence[Metric]:
        return _of_member("gateway", await self._own.families())

    async def _member(self, answer: Awaitable[CollectMetricsResponse], name: str) -> Sequence[Metric]:
        return _of_member(name, parsed((await answer).text))

    async def _envoy(self) -> Sequence[Metric]:
        # Imported only if needed: the import is a tenth of the gateway's start.
        import aiohttp

        connector = aiohttp.UnixConnector(str(self._envoy_admin))
        try:
            async with (
                aiohttp.ClientSession("http://envoy", connector=connector) as client,
                client.get(envoy_metrics.PATH, params=envoy_metrics.QUERY) as answer,
            ):
                answer.raise_for_status()
                text = await answer.content.read(MAX_BYTES + 1)
                while len(text) <= MAX_BYTES and (more := await answer.content.read(MAX_BYTES)):
                    text += more
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error
        if len(text) > MAX_BYTES:
            raise ValueError(f"Envoy's statistics have more than {MAX_BYTES} bytes")
        return list(envoy_metrics.exposed(parsed(text)))


def _of_member(name: str, families: Iterable[Metric]) -> Sequence[Metric]:
    return [labelled(family, {"member": name}) for family in families]
