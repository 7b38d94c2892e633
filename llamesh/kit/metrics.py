"""The metrics of a member for Prometheus: of its calls, its process and its parts.

Invariant: labels are bounded: methods are those of the contracts, codes those of gRPC. No label is text of a client.
"""

# ruff: noqa: N802 - the names are the contract's
from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import Metric

from llamesh.kit.exposition import merged
from llamesh.v1.metrics_pb2 import CollectMetricsRequest, CollectMetricsResponse
from llamesh.v1.metrics_pb2_grpc import MetricsServiceServicer

_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the histogram of calls, in seconds."""

MoreMetrics = Callable[[], Awaitable[Sequence[Metric]]]
"""Returns further families of metrics."""


class MemberMetrics(MetricsServiceServicer):
    """The metrics of one member, and the call that returns them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """Metrics that are always collected."""
        ProcessCollector(registry=self.registry)
        self._calls = Histogram(
            "llamesh_call_duration_seconds",
            "Calls that a member has answered. A stream counts when it ends.",
            ("method", "code"),
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._more: list[MoreMetrics] = []

    def observe_call(self, method: str, code: str, seconds: float) -> None:
        """Count a call. `method` is one of the contracts', for instance "/llamesh.v1.GatewayService/GetHealth"."""
        self._calls.labels(method, code).observe(seconds)

    def add(self, more: MoreMetrics) -> None:
        """Include the metrics that `more` returns at each scrape."""
        self._more.append(more)

    async def families(self) -> Sequence[Metric]:
        """Return all metrics as families, for a reader in the same process."""
        return [*self.registry.collect(), *[family for more in self._more for family in await more()]]

    async def CollectMetrics(self, request: CollectMetricsRequest, context: object) -> CollectMetricsResponse:
        """Return all metrics. See the contract."""
        return CollectMetricsResponse(text=merged(await self.families()))
