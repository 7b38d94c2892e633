"""Broadcasts changes by other processes on the same database to the watchers of this process.

Level-triggered like the worker: every POLL_SECONDS the tables are read and compared with the last broadcast of each object, so a missed
change costs seconds. A SQLite file belongs to one process, so nothing runs there.

Invariant: times of different processes are never compared, because their clocks may differ. A change that this process broadcasts while the
tables are read is at least as new as the rows, so it is not replaced; every other difference is broadcast.
"""

from __future__ import annotations

from llamesh.background import BackgroundTask
from llamesh.kit.logs import report_failure
from llamesh.v1.download_pb2 import Download
from services.download.catalogue import Catalogue
from services.download.changes import Changes
from services.download.messages import download_message, model_message
from services.download.transfers import Transfers

POLL_SECONDS = 2.0
"""Seconds between two comparisons."""


class PeerChanges:
    """Polls the tables for changes by other processes."""

    def __init__(self, transfers: Transfers, catalogue: Catalogue, changes: Changes) -> None:
        self._transfers = transfers
        self._catalogue = catalogue
        self._changes = changes
        self._task = BackgroundTask("follow other processes", self.compare, report_failure, every=POLL_SECONDS)

    def start(self) -> None:
        """Start to poll."""
        self._task.start()

    async def close(self) -> None:
        """Stop polling."""
        await self._task.close()

    async def compare(self) -> None:
        """Broadcast each difference between the tables and the last broadcasts."""
        with self._changes.watch() as meanwhile:
            models = await self._catalogue.all()
            # The transfers are read after the models, so a model is never newer than its transfer.
            transfers = await self._transfers.all()
            newer = meanwhile.unread_models()
        for model in map(model_message, models):
            if model.model_uuid not in newer and model != self._changes.last_model(model.model_uuid):
                self._changes.model(model)
        for download in map(download_message, transfers):
            last = self._changes.last_download(download.model_uuid)
            if download.model_uuid not in newer and (last is None or _version(download) != _version(last)):
                self._changes.download(download)
        downloads = {row.model_uuid for row in transfers}
        for model_uuid in self._changes.live("model") - {model.model_uuid for model in models} - downloads - newer:
            self._changes.removed(model_uuid)
        for model_uuid in self._changes.live("download") - downloads - newer:
            self._changes.removed_download(model_uuid)


def _version(download: Download) -> tuple[int, int, str]:
    """Return the key of a download's state, without its progress: only the process that runs the transfer broadcasts progress."""
    return download.create_time.ToNanoseconds(), download.state, download.error.reason
