"""The download service's calls: decode, call the domain, encode."""

# ruff: noqa: N802 - methods have the names of the contract

from __future__ import annotations

from collections.abc import AsyncIterator

from llamesh.kit.calls import Context
from llamesh.kit.completion import to_completion
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.identity import caller
from llamesh.kit.objects import ObjectStore, StoreError
from llamesh.kit.pages import Pages
from llamesh.v1.download_pb2 import (
    CancelDownloadRequest,
    ChangeCatalogueModelAliasesRequest,
    DeleteCatalogueModelRequest,
    DeleteDownloadRequest,
    Download,
    GetCatalogueModelRequest,
    GetDownloadRequest,
    GetStoreRequest,
    ListCatalogueModelsRequest,
    ListCatalogueModelsResponse,
    ListDownloadsRequest,
    ListDownloadsResponse,
    ListModelObjectsRequest,
    ListModelObjectsResponse,
    LocateModelRequest,
    LocateModelResponse,
    PauseDownloadRequest,
    ResumeDownloadRequest,
    SearchHubRequest,
    SearchHubResponse,
    StartDownloadRequest,
    Store,
    StoreKind,
    WatchCatalogueRequest,
    WatchCatalogueResponse,
)
from llamesh.v1.download_pb2_grpc import CatalogueServiceServicer, DownloadServiceServicer
from llamesh.v1.model_pb2 import Model
from services.download.catalogue import Catalogue
from services.download.changes import Changes
from services.download.deletions import Deletions
from services.download.delivery import Delivery
from services.download.download_broadcasts import DownloadBroadcasts
from services.download.hub_search import HubSearch
from services.download.messages import download_message, model_message, search_of
from services.download.pauses import Pauses
from services.download.starts import Starts
from services.download.transfers import Transfers
from services.download.worker import Worker


class DownloadServicer(DownloadServiceServicer):
    """llamesh.v1.DownloadService."""

    def __init__(
        self,
        starts: Starts,
        transfers: Transfers,
        pauses: Pauses,
        broadcasts: DownloadBroadcasts,
        pages: Pages,
        store: ObjectStore,
        search: HubSearch,
    ) -> None:
        self._starts = starts
        self._transfers = transfers
        self._pauses = pauses
        self._broadcasts = broadcasts
        self._pages = pages
        self._store = store
        self._search = search

    async def StartDownload(self, request: StartDownloadRequest, context: Context) -> Download:
        """See download.proto."""
        row = await self._starts.start(request, caller().subject)
        answer = Download()
        answer.CopyFrom(self._broadcasts.changed(row))
        for old in await self._transfers.remove_surplus(row.requested_by):
            self._broadcasts.removed(old)
        answer.source_changed = await self._starts.source_has_changed(request, row)
        return answer

    async def GetDownload(self, request: GetDownloadRequest, context: Context) -> Download:
        """See download.proto."""
        return self._broadcasts.message(await self._transfers.get(request.model_uuid))

    async def ListDownloads(self, request: ListDownloadsRequest, context: Context) -> ListDownloadsResponse:
        """See download.proto."""
        rows, token = await self._transfers.page(self._pages.query(request))
        return ListDownloadsResponse(downloads=map(self._broadcasts.message, rows), next_page_token=token)

    async def CancelDownload(self, request: CancelDownloadRequest, context: Context) -> Download:
        """See download.proto."""
        return await self._broadcasts.cancelled(request.model_uuid)

    async def PauseDownload(self, request: PauseDownloadRequest, context: Context) -> Download:
        """See download.proto."""
        return self._broadcasts.changed(await self._pauses.pause(request.model_uuid))

    async def ResumeDownload(self, request: ResumeDownloadRequest, context: Context) -> Download:
        """See download.proto."""
        return self._broadcasts.changed(await self._pauses.resume(request.model_uuid))

    async def DeleteDownload(self, request: DeleteDownloadRequest, context: Context) -> Download:
        """See download.proto."""
        return self._broadcasts.removed(await self._transfers.delete(request.model_uuid))

    async def SearchHub(self, request: SearchHubRequest, context: Context) -> SearchHubResponse:
        """See download.proto."""
        return await self._search.search(request.query, request.max_repositories)

    async def GetStore(self, request: GetStoreRequest, context: Context) -> Store:
        """See download.proto."""
        try:
            space, cached = await self._store.space(), await self._store.cached_bytes()
        except StoreError as error:
            raise MeshError(Reason.ERROR_REASON_STORE_UNAVAILABLE, str(error)) from error
        if space is None:
            return Store(kind=StoreKind.STORE_KIND_S3, cached_bytes=cached)
        return Store(kind=StoreKind.STORE_KIND_DIRECTORY, free_bytes=space.free, total_bytes=space.total)


class CatalogueServicer(CatalogueServiceServicer):
    """llamesh.v1.CatalogueService."""

    def __init__(
        self,
        catalogue: Catalogue,
        deletions: Deletions,
        delivery: Delivery,
        transfers: Transfers,
        worker: Worker,
        changes: Changes,
        pages: Pages,
    ) -> None:
        self._catalogue = catalogue
        self._deletions = deletions
        self._delivery = delivery
        self._pages = pages
        self._transfers = transfers
        self._worker = worker
        self._changes = changes

    async def GetCatalogueModel(self, request: GetCatalogueModelRequest, context: Context) -> Model:
        """See download.proto."""
        return model_message(await self._deletions.read(request.model_uuid))

    async def ListCatalogueModels(
        self, request: ListCatalogueModelsRequest, context: Context
    ) -> ListCatalogueModelsResponse:
        """See download.proto."""
        rows, token = await self._catalogue.page(search_of(request), self._pages.query(request))
        return ListCatalogueModelsResponse(models=map(model_message, rows), next_page_token=token)

    async def ChangeCatalogueModelAliases(self, request: ChangeCatalogueModelAliasesRequest, context: Context) -> Model:
        """See download.proto."""
        model = model_message(await self._catalogue.change_aliases(request.model_uuid, request.add, request.remove))
        self._changes.model(model)
        return model

    async def DeleteCatalogueModel(self, request: DeleteCatalogueModelRequest, context: Context) -> Model:
        """See download.proto."""
        return await to_completion(self._deleted(request.model_uuid))

    async def _deleted(self, model_uuid: str) -> Model:
        model = await self._deletions.delete(model_uuid)
        self._changes.removed(model_uuid)
        return model_message(model)

    async def LocateModel(self, request: LocateModelRequest, context: Context) -> LocateModelResponse:
        """See download.proto."""
        paths, model = await self._delivery.locate(request.model_uuid)
        texts = list(map(str, paths))
        return LocateModelResponse(path=texts[0], file_paths=texts, model=model_message(model))

    async def ListModelObjects(self, request: ListModelObjectsRequest, context: Context) -> ListModelObjectsResponse:
        """See download.proto."""
        model = await self._catalogue.get(request.model_uuid)
        keys = [file.object_key for file in model.files]
        return ListModelObjectsResponse(model=model_message(model), object_keys=keys)

    async def WatchCatalogue(
        self, request: WatchCatalogueRequest, context: Context
    ) -> AsyncIterator[WatchCatalogueResponse]:
        """See download.proto."""
        # The watch starts before the lists are read: a change in between is then sent twice instead of never.
        with self._changes.watch() as watcher:
            for transfer in await self._transfers.all():
                # Skip it if a change is unread: that is sent below, and its older progress would go backwards after the present one.
                if not watcher.has_unread_download(transfer.model_uuid):
                    progress, wait_words = (
                        self._worker.progress(transfer.model_uuid),
                        self._worker.wait_words(transfer.model_uuid),
                    )
                    yield WatchCatalogueResponse(download=download_message(transfer, progress, wait_words))
            for model in await self._catalogue.all():
                yield WatchCatalogueResponse(model=model_message(model))
            for change in watcher.read():
                yield change
            yield WatchCatalogueResponse(synced=True)
            async for change in watcher.follow():
                yield change
