"""The numbers that a member keeps for Prometheus: its calls, its process, and what its parts add.

Invariant: labels are bounded: methods are those of the contracts, codes those of gRPC. No label is text of a client.
"""

# ruff: noqa: N802 - the names are the contract's
from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest

from llamesh.kit.exposition import merged, parsed
from llamesh.v1.metrics_pb2 import CollectMetricsRequest, CollectMetricsResponse
from llamesh.v1.metrics_pb2_grpc import MetricsServiceServicer

_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the histogram of calls, in seconds."""

MoreNumbers = Callable[[], Awaitable[bytes]]
"""Returns further numbers in Prometheus' text format."""


class MemberMetrics(MetricsServiceServicer):
    """The numbers of one member, and the call that tells them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """Where parts of the member register what they count."""
        ProcessCollector(registry=self.registry)
        self._calls = Histogram(
            "llamesh_call_duration_seconds",
            "Calls that a member has answered. A stream counts when it ends.",
            ("method", "code"),
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._more: list[MoreNumbers] = []

    def observe_call(self, method: str, code: str, seconds: float) -> None:
        """Count a call. `method` is one of the contracts', for instance "/llamesh.v1.GatewayService/GetHealth"."""
        self._calls.labels(method, code).observe(seconds)

    def counter(self, name: str, words: str, *labels: str) -> Counter:
        """Return a new counter. The caller sees to it that the values of its labels are bounded."""
        return Counter(name, words, labels, registry=self.registry)

    def add(self, more: MoreNumbers) -> None:
        """Tell further numbers, which `more` reads when somebody asks."""
        self._more.append(more)

    async def CollectMetrics(self, request: CollectMetricsRequest, context: object) -> CollectMetricsResponse:
        """Tell all numbers. See the contract."""
        texts = [generate_latest(self.registry), *[await more() for more in self._more]]
        if len(texts) == 1:
            return CollectMetricsResponse(text=texts[0])
        return CollectMetricsResponse(text=merged(family for text in texts for family in parsed(text)))
