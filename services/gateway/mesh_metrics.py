"""The metrics of the whole mesh: collected from the gateway itself, the other members and Envoy, and returned as one text.

Every source is asked at the same time, and each has PATIENCE seconds. Invariant: a source that fails is left out, and `llamesh_up` of
that source is 0; the answer never fails because of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from pathlib import Path

import aiohttp
import grpc
from prometheus_client.core import GaugeMetricFamily, Metric

from llamesh.kit.exposition import labelled, merged, parsed
from llamesh.kit.logs import log
from llamesh.kit.metrics import MemberMetrics
from llamesh.v1.metrics_pb2 import CollectMetricsRequest, CollectMetricsResponse
from services.gateway import envoy_metrics
from services.gateway.members import Members

PATIENCE = 2.0
"""Seconds that a source may take for its answer."""
MOST_BYTES = 16 << 20
"""Most bytes of Envoy's statistics: some 10,000 servers. More is not read, and Envoy counts as a source that fails."""

_FAILURES = (grpc.aio.AioRpcError, aiohttp.ClientError, OSError, TimeoutError, ValueError)


class MeshMetrics:
    """Collects the metrics. `envoy_admin` is the Unix socket of Envoy's admin interface."""

    def __init__(self, own: MemberMetrics, members: Members, envoy_admin: Path) -> None:
        self._own = own
        self._members = members
        self._envoy_admin = envoy_admin
        self._turn = asyncio.Lock()

    async def collect(self) -> bytes:
        """The metrics in Prometheus' text format. One scrape at a time: more would ask every engine more often."""
        async with self._turn:
            sources: Mapping[str, Awaitable[Sequence[Metric]]] = {
                "gateway": self._gateway(),
                **{
                    name: self._member(stub.CollectMetrics(CollectMetricsRequest(), timeout=PATIENCE), name)
                    for name, stub in self._members.metrics.items()
                },
                "envoy": self._envoy(),
            }
            answers = await asyncio.gather(*(self._within_patience(name, ask) for name, ask in sources.items()))
        up = GaugeMetricFamily("llamesh_up", "Whether a part of the mesh told its numbers.", labels=("source",))
        for name, answer in zip(sources, answers, strict=True):
            up.add_metric((name,), 0 if answer is None else 1)
        return merged([up, *(family for answer in answers for family in answer or ())])

    async def _within_patience(self, name: str, ask: Awaitable[Sequence[Metric]]) -> Sequence[Metric] | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await ask
        except _FAILURES as error:
            log.warning("no numbers", source=name, error=str(error))
            return None

    async def _gateway(self) -> Sequence[Metric]:
        return _of_member("gateway", await self._own.families())

    async def _member(self, answer: Awaitable[CollectMetricsResponse], name: str) -> Sequence[Metric]:
        return _of_member(name, parsed((await answer).text))

    async def _envoy(self) -> Sequence[Metric]:
        connector = aiohttp.UnixConnector(str(self._envoy_admin))
        async with (
            aiohttp.ClientSession("http://envoy", connector=connector) as client,
            client.get(envoy_metrics.PATH, params=envoy_metrics.QUERY) as answer,
        ):
            answer.raise_for_status()
            text = await answer.content.read(MOST_BYTES + 1)
            while len(text) <= MOST_BYTES and (more := await answer.content.read(MOST_BYTES)):
                text += more
        if len(text) > MOST_BYTES:
            raise ValueError(f"Envoy has more than {MOST_BYTES} bytes of numbers")
        return list(envoy_metrics.told(parsed(text)))


def _of_member(name: str, families: Iterable[Metric]) -> Sequence[Metric]:
    return [labelled(family, {"member": name}) for family in families]
