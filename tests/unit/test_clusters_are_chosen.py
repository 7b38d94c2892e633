"""`make cluster` takes what the machine has."""

from __future__ import annotations

import pytest

from tools.any_cluster import COMMANDS, NAME, chosen


@pytest.mark.parametrize(
    ("programs", "docker_runs", "kind"),
    [
        ({"k3d", "kind"}, True, "k3d"),
        ({"kind"}, True, "kind"),
        ({"k3d", "kind"}, False, "local"),
        (set(), True, "local"),
    ],
)
def test_k3d_comes_before_kind_and_both_need_docker(programs: set[str], docker_runs: bool, kind: str) -> None:
    assert chosen(frozenset(programs), docker_runs) == kind


@pytest.mark.parametrize("kind", ["k3d", "kind"])
def test_what_is_created_is_what_is_deleted(kind: str) -> None:
    assert [NAME in command for commands in COMMANDS[kind].values() for command in commands] == [True, True]
