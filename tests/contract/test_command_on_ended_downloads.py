"""A call about a download that has ended already changes nothing, and says so."""

from __future__ import annotations

from typing import Any

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import download_pb2
from tests.contract.fakes import FakeDownloads

Capture = pytest.CaptureFixture[str]
SUCCEEDED, FAILED = download_pb2.DOWNLOAD_STATE_SUCCEEDED, download_pb2.DOWNLOAD_STATE_FAILED
RUNNING = download_pb2.DOWNLOAD_STATE_RUNNING

pytestmark = pytest.mark.usefixtures("url")


class Downloads(FakeDownloads):
    """Has one download, which a start leaves as it is."""

    state = SUCCEEDED

    def ListDownloads(self, request: Any, context: Any) -> download_pb2.ListDownloadsResponse:
        return download_pb2.ListDownloadsResponse(downloads=[self.GetDownload(request, context)])

    def GetDownload(self, request: Any, context: Any) -> download_pb2.Download:
        return download_pb2.Download(model_uuid="gone", source="hf:ada/gone-GGUF", state=self.state)

    StartDownload = GetDownload


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


@pytest.mark.parametrize(
    ("words", "state", "said"),
    [
        (["cancel"], SUCCEEDED, "the download of gone has ended already; nothing was done\n"),
        (["cancel"], FAILED, "the download of gone has ended already; nothing was done\n"),
        (["cancel"], RUNNING, ""),
        (
            ["retry"],
            SUCCEEDED,
            (
                "the download of gone has succeeded already; nothing was done\n"
                "`llamesh pull --uuid gone --update` fetches it again\n"
            ),
        ),
        (["retry", "--no-wait"], RUNNING, ""),
    ],
)
def test_a_call_that_changes_nothing_says_so(
    downloads: Downloads, capsys: Capture, words: list[str], state: download_pb2.DownloadState, said: str
) -> None:
    downloads.state = state
    assert run(["downloads", words[0], "gone", *words[1:]]) == Exit.OK
    assert capsys.readouterr().err == said
