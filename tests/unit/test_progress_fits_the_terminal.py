"""The progress of a download is one line at any width, and plain lines on a pipe."""

from __future__ import annotations

import pytest

from llamesh.cli.progress import duration, followed, line, of_download
from llamesh.client.silence import Silence
from llamesh.v1.download_pb2 import DOWNLOAD_STATE_QUEUED, DOWNLOAD_STATE_RUNNING, DOWNLOAD_STATE_SUCCEEDED, Download

RUNNING = Download(
    model_uuid="Qwen3-0.6B-Q4_0.gguf",
    state=DOWNLOAD_STATE_RUNNING,
    bytes_done=450 * 2**20,
    bytes_total=1000 * 2**20,
    bytes_per_second=100 * 2**20,
)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, "Qwen3…   45%  450.0 MiB of 1000.0 MiB  100.0 MiB/s  6s left"),
        (80, "Qwen3-0.6B-Q4_0.gguf   45%  450.0 MiB of 1000.0 MiB  100.0 MiB/s  6s left"),
        (
            120,
            (
                "Qwen3-0.6B-Q4_0.gguf  ██████████████████░░░░░░░░░░░░░░░░░░░░░░   45%"
                "  450.0 MiB of 1000.0 MiB  100.0 MiB/s  6s left"
            ),
        ),
    ],
)
def test_golden_lines(width: int, shown: str) -> None:
    assert line(of_download(RUNNING), width) == shown


@pytest.mark.parametrize("width", range(1, 130))
@pytest.mark.parametrize("done", [0, 1, 2**40, 2**41])
def test_a_line_is_narrower_than_the_terminal(width: int, done: int) -> None:
    now = Download(model_uuid="x" * 128, state=DOWNLOAD_STATE_RUNNING, bytes_done=done, bytes_total=2**40)
    assert len(line(of_download(now), width)) < width


def test_an_unknown_length_shows_the_bytes_received() -> None:
    now = Download(model_uuid="m", state=DOWNLOAD_STATE_RUNNING, bytes_done=2**20, bytes_per_second=2**10)
    assert line(of_download(now), 80) == "m  1.0 MiB  1.0 KiB/s"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (125, "2m05s"), (3900, "1h05m")]
)
def test_lengths_of_time(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


class _Pull:
    """Labelled fake of a pull: tells prepared states."""

    def __init__(self, *states: Download) -> None:
        self._states = states
        self.silence = Silence()

    def wait(self, on_progress: object) -> None:
        for state in self._states:
            on_progress(state)  # type: ignore[operator]


def test_on_a_pipe_there_is_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    queued = Download(model_uuid="m", state=DOWNLOAD_STATE_QUEUED)
    states = [
        Download(model_uuid="m", state=DOWNLOAD_STATE_RUNNING, bytes_done=done, bytes_total=100)
        for done in (0, 1, 9, 10, 11, 55, 100)
    ]
    followed(_Pull(queued, *states))  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        "m  0%  0 B of 100 B",
        "m  10%  10 B of 100 B",
        "m  55%  55 B of 100 B",
        "m  100%  100 B of 100 B",
    ]


def test_a_model_that_is_already_stored_prints_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    followed(_Pull(Download(model_uuid="m", state=DOWNLOAD_STATE_SUCCEEDED, bytes_done=9, bytes_total=9)))  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")
