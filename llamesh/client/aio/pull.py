# ruff: noqa: ASYNC109 a timeout here is the deadline of a gRPC call, which the server learns of
"""A handle on a running download, which its caller follows until the model can be served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from llamesh.client import errors
from llamesh.v1 import download_pb2, model_pb2

if TYPE_CHECKING:
    from llamesh.client.aio.client import AsyncClient

_ENDED = frozenset(
    {
        download_pb2.DOWNLOAD_STATE_SUCCEEDED,
        download_pb2.DOWNLOAD_STATE_FAILED,
        download_pb2.DOWNLOAD_STATE_CANCELLED,
    }
)


class AsyncPull:
    """A download that was started."""

    def __init__(self, mesh: AsyncClient, download: download_pb2.Download) -> None:
        self._mesh = mesh
        self.download = download
        """Last observed state of the download."""
        self.model_uuid = download.model_uuid
        self.silence = mesh.silence
        """For how long the mesh has not answered: if it does not, `download` may be out of date."""

    @property
    def ended(self) -> bool:
        """Whether the download had ended when it was last observed: it succeeded, failed or was cancelled."""
        return self.download.state in _ENDED

    @property
    def paused(self) -> bool:
        """Whether the download was paused when it was last observed: it waits until it is resumed."""
        return self.download.state == download_pb2.DOWNLOAD_STATE_PAUSED

    async def progress(self, timeout: float | None = None) -> AsyncIterator[download_pb2.Download]:
        """Yield the download after each change, until it has ended.

        Raises the error of the contract's reason if it failed, and DownloadNotFound if its record was removed meanwhile.
        """
        yield self.download
        if self._ended():
            return
        wanted = [self.model_uuid]
        async for event in self._mesh.watch(models=wanted, kinds=["DOWNLOADS"], patient=True, timeout=timeout):
            if event.WhichOneof("event") == "download":
                self.download = await self._counting(event.download)
            else:
                # A complete list without the download, or a removal: no later event reports a removed record, so ask for it.
                self.download = (await self._mesh.models.pulling(self.model_uuid)).download
            yield self.download
            if self._ended():
                return

    async def _counting(self, told: download_pb2.Download) -> download_pb2.Download:
        """Return the state of this attempt. A watch may begin with the end of an earlier attempt; if so, read the download again."""
        if told.state not in _ENDED or told.create_time == self.download.create_time:
            return told
        return (await self._mesh.models.pulling(self.model_uuid)).download

    def _ended(self) -> bool:
        state = download_pb2.DownloadState.Name(self.download.state).removeprefix("DOWNLOAD_STATE_")
        if state == "FAILED":
            found = self.download.error
            error = errors.of_reason(found.reason, found.message, metadata={"modelUuid": self.model_uuid})
            error.remedy = found.remedy or error.remedy
            raise error
        if state == "CANCELLED":
            raise errors.MeshError(f"the download of {self.model_uuid} was cancelled")
        return state == "SUCCEEDED"

    async def wait(
        self, timeout: float | None = None, on_progress: Callable[[download_pb2.Download], None] | None = None
    ) -> model_pb2.Model:
        """Wait until the model can be served, and return it."""
        async for download in self.progress(timeout):
            if on_progress:
                on_progress(download)
        return await self._mesh.models.get(self.model_uuid, by_name=False)
