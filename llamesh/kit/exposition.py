"""Reads metrics in Prometheus' text format from several sources, labels them, and writes them as one text.

Invariant: the output has each family once, with all its samples, as the format requires.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

disable_created_metrics()  # type: ignore[no-untyped-call]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def parsed(text: bytes) -> Iterable[Metric]:
    """Parse a text to metric families. ValueError if it is not in the format."""
    return text_string_to_metric_families(text.decode())


def labelled(family: Metric, labels: Mapping[str, str]) -> Metric:
    """Return the family with these labels on each sample. They replace labels of the same name."""
    return with_samples(family, [each._replace(labels={**each.labels, **labels}) for each in family.samples])


def with_samples(family: Metric, samples: list[Sample]) -> Metric:
    """Copy the family with other samples."""
    made = Metric(family.name, family.documentation, family.type, family.unit)
    made.samples = samples
    return made


def renamed(family: Metric, name: str, words: str, divisor: float = 1.0) -> Metric:
    """Return the family with another name, documentation (`words`) and unit: a divisor of 1000 converts milliseconds to seconds.

    In a histogram the bounds and the sum are divided; the counts are not.
    """
    samples = []
    for each in family.samples:
        labels, value = dict(each.labels), each.value
        if "le" in labels:
            labels["le"] = _divided(labels["le"], divisor)
        elif not each.name.endswith("_count"):
            value /= divisor
        samples.append(each._replace(name=name + each.name.removeprefix(family.name), labels=labels, value=value))
    made = Metric(name, words, family.type, family.unit)
    made.samples = samples
    return made


def merged(families: Iterable[Metric]) -> bytes:
    """Write all families as one text. Samples of one family are merged under its first documentation."""
    found: dict[str, Metric] = {}
    for family in families:
        if family.name in found:
            found[family.name].samples.extend(family.samples)
        else:
            found[family.name] = with_samples(family, list(family.samples))
    registry = CollectorRegistry()
    registry.register(_Families(found.values()))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _divided(bound: str, divisor: float) -> str:
    return bound if bound == "+Inf" else repr(float(bound) / divisor)
