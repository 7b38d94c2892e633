"""A download that waits says what it waits for now, and nothing of a wait that is over."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llamesh.v1.download_pb2 import DownloadError
from services.download.messages import download_message
from services.download.tables import TransferRow, TransferState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def failed_once(state: TransferState) -> TransferRow:
    """A transfer whose source was away."""
    return TransferRow(
        model_uuid="m2", name="m2", source="s", shown_source="s", state=state, bytes_done=0, bytes_total=0, sha256="", resume_count=1,
        revision="", error_reason="SOURCE_UNAVAILABLE", error_message="tries again in 2 s", create_time=NOW, update_time=NOW,
    )  # fmt: skip


def test_a_download_that_waits_for_another_one_has_no_reason_of_its_own_last_failure() -> None:
    error = download_message(failed_once(TransferState.QUEUED), wait_words="waits for the download of m1").error
    assert error == DownloadError(message="waits for the download of m1")


@pytest.mark.parametrize(("state", "words"), [(TransferState.QUEUED, ""), (TransferState.FAILED, "m1")])
def test_a_download_that_waits_for_no_other_one_says_why_its_last_try_failed(state: TransferState, words: str) -> None:
    error = download_message(failed_once(state), wait_words=words).error
    assert (error.reason, error.message) == ("SOURCE_UNAVAILABLE", "tries again in 2 s")
    assert error.remedy
