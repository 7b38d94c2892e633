"""A process is given up after so many unanswered probes in a row, never for a pause of the machine or of the supervisor."""

from __future__ import annotations

from llamesh.cli.mesh.liveness import SILENT_PROBES, Answer, Liveness


def test_only_probes_in_a_row_count() -> None:
    liveness = Liveness(patience=20)
    assert not liveness.count(Answer.GIVEN)
    for _ in range(3):
        assert not any(liveness.count(Answer.NONE) for _ in range(SILENT_PROBES - 1))
        assert not liveness.count(Answer.GIVEN)
    verdicts = [liveness.count(Answer.NONE) for _ in range(SILENT_PROBES)]
    assert verdicts == [*[False] * (SILENT_PROBES - 1), True]


def test_a_process_that_does_not_listen_yet_is_given_longer_and_probed_often() -> None:
    liveness = Liveness(patience=20)
    assert liveness.every == 0.5
    verdicts = [liveness.count(Answer.NOBODY, 0.001) for _ in range(600)]
    assert verdicts == [*[False] * 599, True]
    assert liveness.words() == "did not answer any liveness probe for 300 s after its start"


def test_one_late_probe_of_a_start_counts_as_one() -> None:
    liveness = Liveness(patience=20)
    verdicts = [liveness.count(Answer.NOBODY, 3600.0) for _ in range(75)]
    assert verdicts == [*[False] * 74, True]


def test_a_process_that_has_answered_is_judged_by_its_patience() -> None:
    liveness = Liveness(patience=20)
    for _ in range(100):
        liveness.count(Answer.NOBODY, 0.001)
    liveness.count(Answer.GIVEN, 0.001)
    assert liveness.every == 4
    verdicts = [liveness.count(Answer.NONE, 4) for _ in range(SILENT_PROBES)]
    assert verdicts == [*[False] * (SILENT_PROBES - 1), True]
    assert liveness.words() == "left 5 liveness probes in a row unanswered"


def test_a_process_that_listens_and_never_answers_is_not_starting() -> None:
    liveness = Liveness(patience=20)
    for _ in range(100):
        liveness.count(Answer.NOBODY, 0.001)
    verdicts = [liveness.count(Answer.NONE, 4) for _ in range(SILENT_PROBES)]
    assert verdicts == [*[False] * (SILENT_PROBES - 1), True]


def test_a_process_that_stopped_listening_is_silent() -> None:
    liveness = Liveness(patience=20)
    liveness.count(Answer.GIVEN)
    assert [liveness.count(Answer.NOBODY) for _ in range(SILENT_PROBES)] == [*[False] * (SILENT_PROBES - 1), True]
