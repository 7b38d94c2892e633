"""`llamesh quantize --wait`, `jobs watch` and `jobs show` say how far a job is, what failed and how to go on."""

from __future__ import annotations

import sys

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.remedies import OF_A_USER_OF_JOBS
from llamesh.v1 import quant_pb2
from llamesh.v1.quant_pb2 import QuantError, QuantJob, QuantStep
from services.quant.submitters import REASONS
from tests.contract.fake_quant_service import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, FakeQuantService

Capture = pytest.CaptureFixture[str]
FETCH, IMATRIX, QUANTIZE = (
    quant_pb2.QUANT_STEP_KIND_FETCH,
    quant_pb2.QUANT_STEP_KIND_IMATRIX,
    quant_pb2.QUANT_STEP_KIND_QUANTIZE,
)

pytestmark = pytest.mark.usefixtures("url")


@pytest.fixture
def quant() -> FakeQuantService:
    return FakeQuantService()


def running(kind: quant_pb2.QuantStepKind, done: int, total: int, of_type: str = "") -> QuantJob:
    step = QuantStep(kind=kind, type=of_type, state=quant_pb2.QUANT_STEP_STATE_RUNNING, done=done, total=total)
    return QuantJob(job_id="job_1", state=RUNNING, steps=[step])


def failed() -> QuantJob:
    error = QuantError(
        reason="QUANTISATION_FAILED", message="it ended", remedy="GET :8300/jobs/{job_id} or `llamesh jobs show`"
    )
    step = QuantStep(
        kind=IMATRIX, state=quant_pb2.QUANT_STEP_STATE_FAILED, done=3, total=8, error=error, log="one\ntwo\n  three"
    )
    step.start_time.seconds, step.end_time.seconds = 1000, 1125
    return QuantJob(job_id="job_1", state=FAILED, steps=[step], error=error)


def test_the_end_of_a_job_says_how_to_serve_its_variants(quant: FakeQuantService, capsys: Capture) -> None:
    quant.states.append(QuantJob(job_id="job_1", state=SUCCEEDED))
    quant.variants = ["m-Q8_0", "m-Q4_0"]
    assert run(["quantize", "m0", "--types", "Q8_0,Q4_0", "--wait"]) == Exit.OK
    assert "`llamesh run quant:m-Q8_0`" in capsys.readouterr().err


def test_a_job_without_wait_names_the_command_that_follows_it(quant: FakeQuantService, capsys: Capture) -> None:
    assert run(["quantize", "m0", "--types", "Q8_0"]) == Exit.OK
    assert "`llamesh jobs watch job_1`" in capsys.readouterr().err


def test_a_job_is_followed_by_its_id(quant: FakeQuantService, capsys: Capture) -> None:
    quant.states.append(QuantJob(job_id="job_1", state=SUCCEEDED))
    quant.variants = ["m-Q8_0"]
    assert run(["jobs", "watch", "job_1"]) == Exit.OK
    assert "m-Q8_0" in capsys.readouterr().out


def test_on_a_pipe_a_step_has_a_line_for_each_tenth(quant: FakeQuantService, capsys: Capture) -> None:
    quant.states += [running(IMATRIX, 0, 0), *(running(IMATRIX, done, 100) for done in range(30))]
    quant.states += [running(QUANTIZE, 0, 0, "Q8_0"), QuantJob(job_id="job_1", state=SUCCEEDED)]
    assert run(["jobs", "watch", "job_1"]) == Exit.OK
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [line[1:] for line in lines if line[0] == "job_1"] == [
        ["waits", "for", "its", "turn"],
        ["imatrix"],
        ["imatrix", "10%", "10", "of", "100"],
        ["imatrix", "20%", "20", "of", "100"],
        ["quantize", "Q8_0"],
    ]


def test_the_line_of_a_terminal_is_removed_at_the_end(
    quant: FakeQuantService, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quant.states += [running(FETCH, 1, 2), QuantJob(job_id="job_1", state=SUCCEEDED)]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(["jobs", "watch", "job_1"]) == Exit.OK
    said = capsys.readouterr().err
    assert "fetch" in said
    assert said.endswith("\r\x1b[K")


def test_ctrl_c_ends_the_waiting_on_a_line_of_its_own(
    quant: FakeQuantService, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object, job_id: str, on_change: object) -> None:
        on_change(running(FETCH, 1, 2))  # type: ignore[operator]
        raise KeyboardInterrupt

    monkeypatch.setattr("llamesh.client.sync.quant.Quant.wait", interrupt)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(["jobs", "watch", "job_1"]) == Exit.INTERRUPTED
    assert "\r\x1b[Kthe job goes on: `llamesh jobs watch job_1`" in capsys.readouterr().err


def test_a_failed_job_is_refused_in_commands(quant: FakeQuantService, capsys: Capture) -> None:
    quant.states.append(failed())
    assert run(["jobs", "watch", "job_1"]) == Exit.FAILED
    said = capsys.readouterr().err
    assert "  imatrix: it ended" in said.splitlines()
    assert "`llamesh jobs show job_1`" in said
    assert "{job_id}" not in said


def test_a_job_is_shown_with_figures_durations_and_the_lines_of_its_log(
    quant: FakeQuantService, capsys: Capture
) -> None:
    quant.states.append(failed())
    assert run(["jobs", "show", "job_1"]) == Exit.OK
    shown = capsys.readouterr()
    assert "3 of 8" in shown.out
    assert "1970-01-01 00:16:40Z" in shown.out
    assert "2m05s" in shown.out
    assert shown.err.splitlines()[1:5] == ["the last lines of imatrix:", "one", "two", "  three"]
    assert "GET" not in shown.err


def test_a_variant_that_a_check_refuses_is_shown_with_the_reason_once_and_without_a_log(
    quant: FakeQuantService, capsys: Capture
) -> None:
    job = failed()
    for error in (job.error, job.steps[0].error):
        error.reason, error.message = "VARIANT_UNSOUND", "the mean KL divergence is 0.9, at most 0.5 is allowed"
    quant.states.append(job)
    assert run(["jobs", "show", "job_1"]) == Exit.OK
    shown = "".join(capsys.readouterr())
    assert shown.count("the mean KL divergence is 0.9") == 1
    assert "last lines" not in shown


def test_the_reason_of_a_job_that_no_step_has_is_shown(quant: FakeQuantService, capsys: Capture) -> None:
    job = failed()
    del job.steps[:]
    quant.states.append(job)
    assert run(["jobs", "show", "job_1"]) == Exit.OK
    assert "it ended" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["show", "watch"])
def test_a_job_whose_message_says_what_to_do_has_no_empty_hint(
    quant: FakeQuantService, capsys: Capture, verb: str
) -> None:
    job = failed()
    job.error.reason, job.error.message = "QUANT_REFUSED", "the disk is full"
    quant.states.append(job)
    run(["jobs", verb, "job_1"])
    assert "hint:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "state", "said"),
    [
        ("cancel", SUCCEEDED, "has ended already; nothing was done"),
        ("cancel", CANCELLED, "has ended already; nothing was done"),
        ("cancel", RUNNING, ""),
        ("retry", SUCCEEDED, "has made all its types already; nothing was done"),
        ("retry", RUNNING, "has not ended; nothing was done"),
        ("retry", FAILED, ""),
    ],
)
def test_a_call_that_changes_nothing_says_so(
    quant: FakeQuantService, capsys: Capture, verb: str, state: quant_pb2.QuantJobState, said: str
) -> None:
    quant.states.append(QuantJob(job_id="job_1", state=state))
    assert run(["jobs", verb, "job_1"]) == Exit.OK
    assert capsys.readouterr().err == (f"the job job_1 {said}\n" if said else "")
    assert quant.calls == [verb]


def test_a_variant_that_is_not_there_is_found_among_the_variants(capsys: Capture) -> None:
    assert run(["variants", "rm", "m-Q8"]) == Exit.NOT_FOUND
    assert "`llamesh variants` lists" in capsys.readouterr().err


@pytest.mark.parametrize("state", [QUEUED, RUNNING])
def test_what_a_job_waits_for_is_said(quant: FakeQuantService, capsys: Capture, state: quant_pb2.QuantJobState) -> None:
    error = QuantError(reason="STORE_UNAVAILABLE", message="the store is away")
    quant.states += [QuantJob(job_id="job_1", state=state, error=error)] * 2
    quant.states.append(QuantJob(job_id="job_1", state=SUCCEEDED))
    assert run(["jobs", "watch", "job_1"]) == Exit.OK
    assert capsys.readouterr().err.count("job_1: the store is away") == 1


@pytest.mark.parametrize("reason", REASONS)
def test_a_job_whose_user_lost_their_rights_is_taken_over_by_another(
    quant: FakeQuantService, capsys: Capture, reason: str
) -> None:
    job = failed()
    job.error.reason = reason
    quant.states.append(job)
    assert run(["jobs", "watch", "job_1"]) != Exit.OK
    assert "hint: `llamesh jobs retry job_1` goes on with your rights" in capsys.readouterr().err


def test_the_command_knows_the_reasons_of_lost_rights() -> None:
    assert set(REASONS) == OF_A_USER_OF_JOBS
