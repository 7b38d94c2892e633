"""A process is given up after so many unanswered probes in a row, never for a pause of the machine or of the supervisor."""

from __future__ import annotations

from llamesh.cli.mesh.liveness import SILENT_PROBES, STARTING_PROBES, Liveness


def test_only_probes_in_a_row_count() -> None:
    liveness = Liveness()
    assert not liveness.count(answered=True)
    for _ in range(3):
        assert not any(liveness.count(answered=False) for _ in range(SILENT_PROBES - 1))
        assert not liveness.count(answered=True)
    verdicts = [liveness.count(answered=False) for _ in range(SILENT_PROBES)]
    assert verdicts == [*[False] * (SILENT_PROBES - 1), True]


def test_a_process_that_has_not_answered_yet_is_given_longer() -> None:
    liveness = Liveness()
    verdicts = [liveness.count(answered=False) for _ in range(STARTING_PROBES)]
    assert verdicts == [*[False] * (STARTING_PROBES - 1), True]
