"""What other processes on the same database changed, told to the watchers of this one.

Level-triggered like the worker: the tables are read and compared with what was told last, so a change that is missed costs
LOOK_SECONDS. On SQLite there are no other processes, and nothing is read.
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


class Neighbours:
    """Follows the other processes of one database."""

    def __init__(self, transfers: Transfers, catalogue: Catalogue, changes: Changes) -> None:
        self._transfers = transfers
        self._catalogue = catalogue
        self._changes = changes
        self._looking = BackgroundTask("follow other processes", self.look, report_failure, every=LOOK_SECONDS)

    def start(self) -> None:
        """Begin to follow."""
        self._looking.start()

    async def close(self) -> None:
        """Stop."""
        await self._looking.close()

    async def look(self) -> None:
        """Tell what differs from what was told last, by whomever."""
        models = await self._catalogue.all()
        # Read second: a model's transfer is never older than the model that is told with it.
        transfers = await self._transfers.all()
        for model in map(model_message, models):
            last_model = self._changes.last_model(model.model_uuid)
            if last_model is None or model.create_time.ToNanoseconds() > last_model.create_time.ToNanoseconds():
                self._changes.model(model)
        for download in map(download_message, transfers):
            last = self._changes.last_download(download.model_uuid)
            if last is None or _is_news(download, last):
                self._changes.download(download)
        present = {model.model_uuid for model in models} | {row.model_uuid for row in transfers}
        for model_uuid in self._changes.models_told() - present:
            self._changes.removed(model_uuid)


def _is_news(download: Download, last: Download) -> bool:
    """Whether a state is later than the one that was told; progress is told by whoever works on it."""
    later = download.update_time.ToNanoseconds() > last.update_time.ToNanoseconds()
    return later and (download.state, download.error.reason) != (last.state, last.error.reason)
