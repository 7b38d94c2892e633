"""The memory of a cluster's nodes, as Kubernetes writes it."""

from __future__ import annotations

from typing import Any

import pytest

from controller.capacity import capacity_of_nodes
from controller.kubernetes.nodes import allocatable, quantity


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("1024", 1024),
        ("16Gi", 16 << 30),
        ("1.5Gi", 3 << 29),
        ("32828628Ki", 32828628 << 10),
        ("2Pi", 2 << 50),
        ("100M", 100_000_000),
        ("1500m", 1),
        ("much", 0),
    ],
)
def test_quantities_are_read(words: str, size: int) -> None:
    assert quantity(words) == size


@pytest.mark.parametrize(
    ("node", "size"),
    [
        ({"status": {"allocatable": {"memory": "1Gi"}}}, 1 << 30),
        ({"spec": {"unschedulable": True}, "status": {"allocatable": {"memory": "1Gi"}}}, 0),
        ({}, 0),
    ],
)
def test_a_node_that_takes_no_pods_has_none(node: dict[str, Any], size: int) -> None:
    assert allocatable(node) == size


def test_every_node_counts_by_itself() -> None:
    found = capacity_of_nodes({"b": 8 << 30, "a": 100}, 1 << 30)
    assert [(node.name, node.free_bytes) for node in found.nodes] == [("a", 0), ("b", 7 << 30)]
