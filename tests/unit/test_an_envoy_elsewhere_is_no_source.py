"""The metrics of the mesh leave out an Envoy on another machine, and report one of this machine that does not answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llamesh.kit.metrics import MemberMetrics
from services.gateway.mesh_metrics import MeshMetrics

NO_MEMBERS: Any = SimpleNamespace(metrics={})


async def sources(admin: Path, *, elsewhere: bool) -> dict[str, float]:
    """What `llamesh_up` says of each source."""
    metrics = MeshMetrics(MemberMetrics(), NO_MEMBERS, admin, envoy_may_be_elsewhere=elsewhere)
    families = text_string_to_metric_families((await metrics.collect()).decode())
    return {
        each.labels["source"]: each.value
        for family in families
        if family.name == "llamesh_up"
        for each in family.samples
    }


@pytest.mark.parametrize(
    ("there", "elsewhere", "found"),
    [
        (False, False, {"gateway": 1.0, "envoy": 0.0}),
        (True, False, {"gateway": 1.0, "envoy": 0.0}),
        (True, True, {"gateway": 1.0, "envoy": 0.0}),
        (False, True, {"gateway": 1.0}),
    ],
)
async def test_a_missing_admin_interface(tmp_path: Path, there: bool, elsewhere: bool, found: dict[str, float]) -> None:
    admin = tmp_path / "envoy-admin.sock"
    if there:
        admin.touch()  # of an Envoy that was killed: nobody answers
    assert await sources(admin, elsewhere=elsewhere) == found
