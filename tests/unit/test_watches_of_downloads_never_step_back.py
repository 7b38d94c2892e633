"""A watch of the catalogue that begins during a download sends no progress that is older than progress it has sent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from llamesh.v1.download_pb2 import Download, WatchCatalogueRequest
from services.download.changes import Changes
from services.download.messages import download_message
from services.download.progress import Progress
from services.download.servicer import CatalogueServicer
from services.download.tables import TransferRow, TransferState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Running:
    """One running download, told at 39 bytes while its row is read, and at 50 when the row is sent."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.now = Progress(100, lambda: 0.0)
        self.row = TransferRow(
            model_uuid="m", name="m", source="s", shown_source="s", state=TransferState.RUNNING, bytes_done=0, bytes_total=100,
            sha256="", resume_count=0, revision="", error_reason="", error_message="", create_time=NOW, update_time=NOW,
        )  # fmt: skip

    async def all(self) -> Sequence[TransferRow]:
        self.now.add(39)
        self.changes.download(download_message(self.row, self.now))
        self.now.add(11)
        return [self.row]

    def progress(self, _model_uuid: str) -> Progress:
        return self.now

    def wait_words(self, _model_uuid: str) -> str:
        return ""


class NoModels:
    async def all(self) -> Sequence[Any]:
        return []


async def test_progress_that_was_told_during_the_read_is_not_sent_after_newer_progress() -> None:
    running: Any = Running()
    models: Any = NoModels()
    nothing: Any = None
    servicer = CatalogueServicer(models, nothing, nothing, running, running, running.changes, nothing)
    stream = servicer.WatchCatalogue(WatchCatalogueRequest(), nothing)
    sent: list[Download] = []
    async for response in stream:
        if response.synced:
            break
        sent.append(response.download)
    running.changes.download(download_message(running.row, running.now))
    sent.append((await anext(stream)).download)
    assert [download.bytes_done for download in sent] == [39, 50]
