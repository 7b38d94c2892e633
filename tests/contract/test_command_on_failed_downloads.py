"""A download that has failed shows what to do about it wherever it is shown, from the table of remedies that all errors have."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.remedies import REMEDIES, remedy_for
from llamesh.v1 import download_pb2
from tests.contract.fakes import FakeDownloads, refuse

Capture = pytest.CaptureFixture[str]
FORMS = "`llamesh pull --help` names the forms of a source"
MESSAGE = "the server answered 404"
CONTRACTS = "Start the download again."

pytestmark = pytest.mark.usefixtures("url")


class Downloads(FakeDownloads):
    """Has one download, which has failed."""

    reason = "SOURCE_UNAVAILABLE"
    state = download_pb2.DOWNLOAD_STATE_FAILED
    source = "https://a/gone.gguf"
    refusal: tuple[grpc.StatusCode, str] | None = None

    def ListDownloads(self, request: Any, context: Any) -> download_pb2.ListDownloadsResponse:
        if self.refusal:
            refuse(context, *self.refusal, "the list is refused")
        return download_pb2.ListDownloadsResponse(downloads=[self.GetDownload(request, context)])

    def GetDownload(self, request: Any, context: Any) -> download_pb2.Download:
        error = download_pb2.DownloadError(reason=self.reason, message=MESSAGE, remedy=CONTRACTS)
        return download_pb2.Download(model_uuid="none", source=self.source, state=self.state, error=error)

    StartDownload = GetDownload


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


@pytest.mark.parametrize(
    "words",
    [
        ["downloads", "-o", "wide"],
        ["downloads", "retry", "none"],
        ["describe", "none"],
        ["pull", "https://a/gone.gguf"],
    ],
)
def test_a_failed_download_shows_its_reason_and_its_remedy(capsys: Capture, words: list[str]) -> None:
    assert run(words) == (Exit.OK if "wide" in words else Exit.NOT_FOUND if "describe" in words else Exit.UNAVAILABLE)
    shown = "".join(capsys.readouterr())
    assert MESSAGE in shown
    assert f"{REMEDIES['SOURCE_UNAVAILABLE']}; `llamesh downloads retry none` fetches it again" in shown


def test_the_file_of_a_download_that_has_failed_is_given_again(downloads: Downloads, capsys: Capture) -> None:
    downloads.source = "m.gguf"
    assert run(["downloads", "-o", "wide"]) == Exit.OK
    assert "; `llamesh pull PATH --uuid none` takes its file again" in capsys.readouterr().out


def test_a_damaged_model_has_one_command_that_repairs_it(downloads: Downloads, capsys: Capture) -> None:
    downloads.reason = "MODEL_CORRUPT"
    assert run(["downloads", "-o", "wide"]) == Exit.OK
    shown = capsys.readouterr().out
    assert "`llamesh pull --uuid none` downloads it again" in shown
    assert "retry" not in shown


def test_a_reason_without_a_command_has_the_remedy_of_the_contract(downloads: Downloads, capsys: Capture) -> None:
    downloads.reason = "INTERNAL"
    assert run(["downloads", "-o", "wide"]) == Exit.OK
    assert f"{CONTRACTS} `llamesh downloads retry none` fetches it again" in capsys.readouterr().out


@pytest.mark.parametrize("reason", ["CONTENT_MISMATCH", "MODEL_INVALID", "SOURCE_REFUSED"])
def test_a_request_that_may_be_wrong_is_replaced(downloads: Downloads, capsys: Capture, reason: str) -> None:
    downloads.reason = reason
    assert run(["downloads", "-o", "wide"]) == Exit.OK
    assert "`llamesh pull ADDRESS --uuid none` with the right options replaces the request" in capsys.readouterr().out


def test_a_failed_source_of_the_hub_may_have_a_mirror(downloads: Downloads, capsys: Capture) -> None:
    for source, named in (("hf:ada/tiny", True), ("https://a/gone.gguf", False)):
        downloads.source = source
        assert run(["downloads", "-o", "wide"]) == Exit.OK
        assert ("HF_ENDPOINT" in capsys.readouterr().out) is named


def test_what_the_source_refuses_is_no_outage(downloads: Downloads, capsys: Capture) -> None:
    downloads.reason = "SOURCE_REFUSED"
    assert run(["pull", "https://a/gone.gguf"]) == Exit.REFUSED
    assert "correct what the message names" in capsys.readouterr().err


def test_a_caller_who_may_not_list_downloads_reads_that_there_is_no_model(
    downloads: Downloads, capsys: Capture
) -> None:
    downloads.refusal = grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"
    assert run(["describe", "none"]) == Exit.NOT_FOUND
    assert "there is no server and no model none" in capsys.readouterr().err


def test_an_outage_is_not_taken_for_a_missing_model(downloads: Downloads, capsys: Capture) -> None:
    downloads.refusal = grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE"
    assert run(["describe", "none"]) == Exit.UNAVAILABLE
    shown = capsys.readouterr().err
    assert "the list is refused" in shown
    assert "no model" not in shown


def test_a_download_that_waits_shows_the_reason_and_no_remedy(downloads: Downloads, capsys: Capture) -> None:
    downloads.state = download_pb2.DOWNLOAD_STATE_QUEUED
    assert run(["downloads"]) == Exit.OK
    shown = capsys.readouterr().out
    assert MESSAGE in shown
    assert REMEDIES["SOURCE_UNAVAILABLE"] not in shown
    assert run(["describe", "none"]) == Exit.NOT_FOUND
    shown = capsys.readouterr().err
    assert "its download is QUEUED" in shown
    assert "`llamesh pull --uuid none` waits for it" in shown


@pytest.mark.parametrize("rule", ["folder", "host", "address", "scheme"])
def test_a_source_that_the_settings_may_allow_names_the_settings(rule: str) -> None:
    remedy = remedy_for("SOURCE_REFUSED", {"rule": rule}, CONTRACTS)
    assert remedy == f"{FORMS}; an administrator allows folders and hosts in the settings"


@pytest.mark.parametrize("rule", ["regular file", "size", "format", "files", "variant", "key", ""])
def test_another_source_that_is_refused_is_to_be_corrected(rule: str) -> None:
    assert remedy_for("SOURCE_REFUSED", {"rule": rule}, CONTRACTS) == "correct what the message names"
