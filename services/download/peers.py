"""What other processes on the same database changed, told to the watchers of this one.

Level-triggered like the worker: the tables are read and compared with what was told last, so a change that is missed costs
LOOK_SECONDS. On SQLite there are no other processes, and nothing is read.

Invariant: no time of one process is compared with that of another, because their clocks may differ. What this process tells while the
tables are read is at least as new as what was read, so it stays; every other difference is news.
"""

from __future__ import annotations

from llamesh.background import BackgroundTask
from llamesh.kit.logs import report_failure
from llamesh.v1.download_pb2 import Download
from services.download.catalogue import Catalogue
from services.download.changes import Changes
from services.download.messages import download_message, model_message
from services.download.transfers import Transfers

LOOK_SECONDS = 2.0
"""How often the tables are compared."""


class PeerChanges:
    """Follows the other processes of one database."""

    def __init__(self, transfers: Transfers, catalogue: Catalogue, changes: Changes) -> None:
        self._transfers = transfers
        self._catalogue = catalogue
        self._changes = changes
        self._looking = BackgroundTask("follow other processes", self.compare, report_failure, every=LOOK_SECONDS)

    def start(self) -> None:
        """Begin to follow."""
        self._looking.start()

    async def close(self) -> None:
        """Stop."""
        await self._looking.close()

    async def compare(self) -> None:
        """Tell what differs from what was told last, by whomever."""
        with self._changes.watch() as meanwhile:
            models = await self._catalogue.all()
            # Read second: a model's transfer is never older than the model that is told with it.
            transfers = await self._transfers.all()
            newer = meanwhile.unread_models()
        for model in map(model_message, models):
            if model.model_uuid not in newer and model != self._changes.last_model(model.model_uuid):
                self._changes.model(model)
        for download in map(download_message, transfers):
            last = self._changes.last_download(download.model_uuid)
            if download.model_uuid not in newer and (last is None or _version(download) != _version(last)):
                self._changes.download(download)
        present = {model.model_uuid for model in models} | {row.model_uuid for row in transfers}
        for model_uuid in self._changes.models_told() - present - newer:
            self._changes.removed(model_uuid)


def _version(download: Download) -> tuple[int, int, str]:
    """What tells one state of a download from another; its progress is told by whoever works on it."""
    return download.create_time.ToNanoseconds(), download.state, download.error.reason
