"""`llamesh downloads` gives a failure one short line, lists one state, and removes all records of failures at once."""

from __future__ import annotations

import io
from typing import Any

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import download_pb2
from tests.contract.fakes import FakeDownloads

Capture = pytest.CaptureFixture[str]
MESSAGE = (
    "the server answered 404 Not Found for https://models.example.com/a/long/path/to/gone.gguf: there is no such file"
)
FAILED, SUCCEEDED = download_pb2.DOWNLOAD_STATE_FAILED, download_pb2.DOWNLOAD_STATE_SUCCEEDED

pytestmark = pytest.mark.usefixtures("url")


class Downloads(FakeDownloads):
    """Has two downloads that have failed and one that has succeeded."""

    def __init__(self) -> None:
        super().__init__()
        error = download_pb2.DownloadError(reason="SOURCE_UNAVAILABLE", message=MESSAGE, remedy="Start it again.")
        self.records = {
            name: download_pb2.Download(model_uuid=name, state=state, error=error if state == FAILED else None)
            for name, state in (("one", FAILED), ("two", FAILED), ("good", SUCCEEDED))
        }

    def ListDownloads(self, request: Any, context: Any) -> download_pb2.ListDownloadsResponse:
        return download_pb2.ListDownloadsResponse(downloads=self.records.values())

    def DeleteDownload(self, request: Any, context: Any) -> download_pb2.Download:
        return self.records.pop(request.model_uuid)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


def test_a_failure_has_a_short_line_on_a_pipe(capsys: Capture) -> None:
    assert run(["downloads"]) == Exit.OK
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) < 120
    assert lines[1].split()[:2] == ["one", "FAILED"]
    assert "the server answered 404 Not Found for" in lines[1]
    assert shown.err.count("`llamesh downloads rm --failed`") == 1


def test_the_wide_list_has_the_whole_reason(capsys: Capture) -> None:
    assert run(["downloads", "-o", "wide"]) == Exit.OK
    assert capsys.readouterr().out.count(MESSAGE) == 2


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        (["downloads", "--state", "failed"], ["one", "two"]),
        (["downloads", "ls", "--state", "succeeded"], ["good"]),
        (["downloads", "--state", "paused"], []),
    ],
)
def test_downloads_of_one_state_are_listed(words: list[str], listed: list[str], capsys: Capture) -> None:
    assert run([*words, "-o", "name"]) == Exit.OK
    assert capsys.readouterr().out.split() == listed


def test_a_state_without_a_download_is_said(capsys: Capture) -> None:
    assert run(["downloads", "--state", "paused"]) == Exit.OK
    assert "no download is PAUSED" in capsys.readouterr().err


def test_all_records_of_failures_are_removed_at_once(downloads: Downloads, capsys: Capture) -> None:
    assert run(["downloads", "rm", "--failed", "--yes"]) == Exit.OK
    assert list(downloads.records) == ["good"]
    assert "removed the download of two" in capsys.readouterr().err
    assert run(["downloads", "rm", "--failed"]) == Exit.OK
    assert capsys.readouterr().err == "no download has failed\n"


@pytest.mark.parametrize(("typed", "left"), [("y\n", ["good"]), ("\n", ["one", "two", "good"])])
def test_it_is_asked_before_records_are_removed(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch, capsys: Capture, typed: str, left: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    assert run(["downloads", "rm", "--failed"]) == Exit.OK
    assert list(downloads.records) == left
    assert capsys.readouterr().err.startswith("one\ntwo\nRemove the records of 2 failed downloads? [y/N] ")


def test_without_a_terminal_the_option_that_does_not_ask_is_named(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run(["downloads", "rm", "--failed"]) == Exit.USAGE
    assert "llamesh downloads rm --failed --yes" in capsys.readouterr().err
    assert len(downloads.records) == 3


@pytest.mark.parametrize("words", [[], ["one", "--failed"]])
def test_either_names_or_the_option_is_needed(words: list[str], downloads: Downloads, capsys: Capture) -> None:
    assert run(["downloads", "rm", *words]) == Exit.USAGE
    assert "MODEL" in capsys.readouterr().err
    assert len(downloads.records) == 3
