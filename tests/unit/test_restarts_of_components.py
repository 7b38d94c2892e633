"""A component that ends is started again at once, then with growing pauses, from the beginning once it was stable."""

from __future__ import annotations

from llamesh.cli.mesh.restarts import MAX_PAUSE, STABLE_SECONDS, Restarts


def test_pauses_grow_to_a_bound() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_after(0.1) for _ in range(12)]
    assert pauses[:5] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == MAX_PAUSE


def test_a_stable_life_begins_anew() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.pause_after(0.1)
    assert restarts.pause_after(STABLE_SECONDS) == 0.0
    assert restarts.pause_after(0.1) == 0.5
