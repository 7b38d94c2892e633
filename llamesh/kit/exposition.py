"""Prometheus' text format: reads the metrics of several sources, labels them, and writes them as one text.

Invariant: the text that is written names each family once, with all samples of it, as the format demands.
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
    """The families of a text. Raises ValueError if it is not in the format."""
    return text_string_to_metric_families(text.decode())


def labelled(family: Metric, labels: Mapping[str, str]) -> Metric:
    """The family with these labels on each sample; they replace labels of the same name."""
    return with_samples(family, [each._replace(labels={**each.labels, **labels}) for each in family.samples])


def with_samples(family: Metric, samples: list[Sample]) -> Metric:
    """A copy of the family that has these samples instead of its own."""
    made = Metric(family.name, family.documentation, family.type, family.unit)
    made.samples = samples
    return made


def renamed(family: Metric, name: str, words: str, divisor: float = 1.0) -> Metric:
    """The family under another name, its values divided: milliseconds become seconds with 1000. `words` document it.

    Of a histogram the bounds and the sum are divided, and its counts stay.
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
    """One text of all families; samples of the same family come together. The first documentation of a family is kept."""
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
