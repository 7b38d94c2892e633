"""The controller's metrics for Prometheus: declared servers, their replicas, and llama.cpp's counters of each engine.

Each scrape queries all engines in parallel. Invariant: the number of label values is bounded by declared servers and replicas. An engine
that does not answer has no metrics except llamesh_engine_up, which is 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from controller.runtimes import EnginePhase, Runtime
from llamesh.kit.exposition import labelled, parsed
from llamesh.kit.logs import log
from llamesh.v1.server_pb2 import Server, ServerState

_LLAMA = "llamacpp:"
"""Prefix of llama.cpp's metric names, which are exposed unchanged because people know them."""
_ANSWER_SECONDS = 1.5
"""Seconds that an engine may take to answer; engines are queried in parallel. Less than the gateway waits for this member."""


class ServerMetrics:
    """Builds the metrics. `servers` returns the present state of every declared server."""

    def __init__(self, servers: Callable[[], Iterable[Server]], runtime: Runtime) -> None:
        self._servers = servers
        self._runtime = runtime

    async def read(self) -> Sequence[Metric]:
        """Return the metric families of the declared servers and of their engines."""
        servers = list(self._servers())
        return [*_of_servers(servers), *await self._of_engines(servers)]

    async def _of_engines(self, servers: Sequence[Server]) -> list[Metric]:
        up = GaugeMetricFamily("llamesh_engine_up", "Whether an engine returned its metrics.", labels=_LABELS)
        labels_of = {
            engine.instance: {**_named(server), "replica": str(engine.replica)}
            for server in servers
            for engine in self._runtime.engines(server.server_uuid)
            if engine.phase is EnginePhase.READY
        }
        found: list[Metric] = [up]
        answers = await asyncio.gather(*(self._of_engine(name, labels) for name, labels in labels_of.items()))
        for labels, families in zip(labels_of.values(), answers, strict=True):
            up.add_metric([labels[label] for label in _LABELS], 1 if families else 0)
            found += families
        return found

    async def _of_engine(self, instance: str, labels: Mapping[str, str]) -> list[Metric]:
        """Return the metrics of an engine; none if it does not answer in time or not in the format."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                text = await self._runtime.metrics(instance) or b""
            return [labelled(each, labels) for each in parsed(text) if each.name.startswith(_LLAMA)]
        except (OSError, TimeoutError, ValueError) as error:
            log.warning("an engine returned no metrics", error=str(error), **labels)
            return []


_LABELS = ("server", "model", "replica")


def _named(server: Server) -> Mapping[str, str]:
    return {"server": server.server_uuid, "model": server.model_name}


def _of_servers(servers: Iterable[Server]) -> list[Metric]:
    wanted = GaugeMetricFamily("llamesh_server_replicas", "Replicas that are declared.", labels=_LABELS[:2])
    ready = GaugeMetricFamily("llamesh_server_ready_replicas", "Replicas that answer.", labels=_LABELS[:2])
    state = GaugeMetricFamily(
        "llamesh_server_state", "1 for the state that a server is in.", labels=(*_LABELS[:2], "state")
    )
    restarts = CounterMetricFamily(
        "llamesh_replica_restarts", "Engines that were started again since the spec changed.", labels=_LABELS
    )
    for server in servers:
        named = tuple(_named(server).values())
        wanted.add_metric(named, server.replicas)
        ready.add_metric(named, server.ready_replicas)
        state.add_metric((*named, ServerState.Name(server.state).removeprefix("SERVER_STATE_").lower()), 1)
        for replica in server.replica_statuses:
            restarts.add_metric((*named, str(replica.index)), replica.restarts)
    return [wanted, ready, state, restarts]
