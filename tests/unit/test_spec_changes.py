"""A change of a server is refused if the caller read another version of it."""

from __future__ import annotations

import pytest

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.spec_changes import apply_changes, check_etag
from llamesh.v1.server_pb2 import Placement, ServerChanges, ServerSpec


@pytest.mark.parametrize("etag", ["", "3"])
def test_no_etag_and_the_present_one_match(etag: str) -> None:
    check_etag("3", etag)


def test_another_etag_is_refused_with_the_present_one() -> None:
    with pytest.raises(MeshError) as caught:
        check_etag("3", "2")
    assert caught.value.reason == Reason.ERROR_REASON_ETAG_MISMATCH
    assert caught.value.metadata == {"etag": "3"}


def test_a_duration_of_zero_is_the_default_and_leaves_an_empty_field() -> None:
    changes = ServerChanges()
    changes.idle_sleep.SetInParent()
    changes.wake_budget.SetInParent()
    assert apply_changes(ServerSpec(replicas=1), changes) == ServerSpec(replicas=1)
    set_before = ServerSpec(replicas=1)
    set_before.idle_sleep.FromSeconds(60)
    set_before.wake_budget.FromSeconds(60)
    assert apply_changes(set_before, changes) == ServerSpec(replicas=1)


def test_a_placement_is_replaced_whole_and_an_empty_one_removes_it() -> None:
    before = ServerSpec(placement=Placement(node_selector={"zone": "a"}, image="engine:1"))
    assert apply_changes(before, ServerChanges(replicas=2)).placement == before.placement
    changed = apply_changes(before, ServerChanges(placement=Placement(image="engine:2")))
    assert changed == ServerSpec(placement=Placement(image="engine:2"))
    assert apply_changes(before, ServerChanges(placement=Placement())) == ServerSpec()
