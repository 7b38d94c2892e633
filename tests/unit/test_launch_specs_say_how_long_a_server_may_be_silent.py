"""How long a server may be silent: its own --timeout, but always more than a request may be held for its engine."""

from __future__ import annotations

import pytest

from controller import launch
from controller.xds.clusters import SILENCE_SECONDS, ServerEndpoints, cluster_facts
from llamesh.v1.server_pb2 import RuntimeParameters, ServerSpec


@pytest.mark.parametrize(
    ("timeout", "budget", "silence"),
    [
        (None, None, SILENCE_SECONDS),
        (7200, None, 7200),
        (600, None, 600),
        (10, None, 125),
        (10, 2, 10),
        (None, 3600, 3605),
        (86400, 3600, 86400),
    ],
)
def test_the_longer_of_timeout_and_budget_counts(timeout: int | None, budget: int | None, silence: int) -> None:
    spec = ServerSpec(parameters=RuntimeParameters(timeout=timeout))
    if budget is not None:
        spec.wake_budget.FromSeconds(budget)
    assert launch.response_timeout(spec) == silence
    assert launch.wake_budget(spec) == (budget or 120)


def test_of_several_servers_with_a_name_the_most_patient_counts() -> None:
    def facts(*limits: int) -> dict[str, object]:
        return cluster_facts(ServerEndpoints(str(limit), (), (), 4, silence_seconds=limit) for limit in limits)

    assert facts() == {}
    assert facts(SILENCE_SECONDS) == {}
    assert facts(5, 60) == {"silence": 60}
    assert facts(5, SILENCE_SECONDS) == {}
