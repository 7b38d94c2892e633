"""Tells the worker and the watchers what a call has changed of a transfer, and encodes transfers with the progress of this process."""

from __future__ import annotations

from llamesh.v1.download_pb2 import Download
from services.download.changes import Changes
from services.download.messages import download_message
from services.download.tables import TransferRow
from services.download.worker import Worker


class DownloadBroadcasts:
    """The downloads as callers and watchers see them."""

    def __init__(self, worker: Worker, changes: Changes) -> None:
        self._worker = worker
        self._changes = changes

    def message(self, row: TransferRow) -> Download:
        """Encode a transfer, with what this process knows of it: its progress, or for which other one it waits."""
        return download_message(row, self._worker.progress(row.model_uuid), self._worker.wait_words(row.model_uuid))

    def changed(self, row: TransferRow) -> Download:
        """Tell the worker and the watchers that a call has changed a transfer, and encode it."""
        self._worker.wake()
        message = self.message(row)
        self._changes.download(message)
        return message

    async def cancelled(self, model_uuid: str) -> Download:
        """Cancel a transfer, and tell it. Raises the errors of `Worker.cancel`."""
        return self.changed(await self._worker.cancel(model_uuid))

    def removed(self, row: TransferRow) -> Download:
        """Tell the watchers that the record of a transfer was removed, and encode it."""
        self._changes.removed_download(row.model_uuid)
        return download_message(row)
