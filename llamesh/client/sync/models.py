# Written from aio/models.py by tools/sync_client.py; edit there.
"""Calls for models and for their downloads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llamesh.client import errors
from llamesh.client.names import names_of, resolve
from llamesh.client.own_files import hand_over
from llamesh.client.references import Model, address_of, default_uuid, model_uuid_of, name_way_of_file, uuid_of_pull
from llamesh.client.services import DOWNLOAD, GATEWAY
from llamesh.client.sync.part import Part
from llamesh.client.sync.pull import Pull
from llamesh.client.transport import DEADLINE
from llamesh.model_addresses import name_with_owner
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2

if TYPE_CHECKING:
    from llamesh.client.sync.client import Client


class Models(Part):
    """Lists and removes models, starts downloads and looks them up."""

    def __init__(self, mesh: Client) -> None:
        super().__init__(mesh.transport)
        self._mesh = mesh

    def list(
        self,
        query: str = "",
        *,
        architecture: str = "",
        quantisation: str = "",
        tag: str = "",
        source_kind: str = "",
        order_by: str = "",
        descending: bool = False,
    ) -> Iterator[model_pb2.Model]:
        """Yield the models that all filters let through; pages are fetched as needed.

        `query` is a part of a name or alias, `source_kind` HUB, HTTP, REGISTRY, S3, QUANT or FILE, `order_by` CREATE_TIME, NAME or
        SIZE_BYTES.
        """
        request = gateway_pb2.ListModelsRequest(
            query=query,
            architecture=architecture,
            quantisation=quantisation,
            tag=tag,
            source_kind=f"MODEL_SOURCE_KIND_{source_kind or 'UNSPECIFIED'}",  # type: ignore[arg-type]
            order_by=f"MODEL_ORDER_{order_by or 'UNSPECIFIED'}",  # type: ignore[arg-type]
            descending=descending,
        )
        return self.pages(f"{GATEWAY}/ListModels", request, gateway_pb2.ListModelsResponse, "models")

    def get(self, model: Model, *, by_name: bool = True, timeout: float | None = None) -> model_pb2.Model:
        """Return one model by its id, its name or an alias; an id goes before a name. Raises ModelNotFound and AmbiguousNameError.

        Without `by_name`, or if `model` is an earlier answer, by its id only, in one call. `timeout`: seconds for all calls; None: 30.
        """
        word = model_uuid_of(model)
        ends = time.monotonic() + (DEADLINE if timeout is None else timeout)
        request = gateway_pb2.GetModelRequest(model_uuid=word)
        try:
            return self._call(f"{GATEWAY}/GetModel", request, model_pb2.Model, timeout)
        except (errors.ModelNotFound, errors.InvalidField) as error:
            # The id may be a name, which may have letters that no id has.
            named = by_name and isinstance(model, str)
            request.model_uuid = self.find(word, timeout=ends - time.monotonic()) if named else word
            if request.model_uuid == word:
                if isinstance(error, errors.ModelNotFound):
                    raise
                raise errors.ModelNotFound(f"there is no model {word}", metadata={"modelUuid": word}) from error
        return self._call(f"{GATEWAY}/GetModel", request, model_pb2.Model, ends - time.monotonic())

    def find(self, name: str, *, timeout: float | None = None) -> str:
        """Resolve an id, a name or an alias to the id of a model. Other words are returned as they are. Raises AmbiguousNameError.

        `timeout`: seconds for all pages of the list; None: 30 for each.
        """
        request = gateway_pb2.ListModelsRequest()
        models = self.pages(f"{GATEWAY}/ListModels", request, gateway_pb2.ListModelsResponse, "models", timeout)
        return resolve(name, [pair for item in models for pair in names_of(item)])

    def change_aliases(
        self, model: Model, *, add: Iterable[str] = (), remove: Iterable[str] = (), timeout: float | None = None
    ) -> model_pb2.Model:
        """Give a model further names and take some away, in one step. Raises ModelNameTaken."""
        request = gateway_pb2.ChangeModelAliasesRequest(model_uuid=model_uuid_of(model), add=add, remove=remove)
        return self._call(f"{GATEWAY}/ChangeModelAliases", request, model_pb2.Model, timeout)

    def delete(self, model: Model, *, timeout: float | None = None) -> model_pb2.Model:
        """Remove a model that no server uses."""
        request = gateway_pb2.DeleteModelRequest(model_uuid=model_uuid_of(model))
        return self._call(f"{GATEWAY}/DeleteModel", request, model_pb2.Model, timeout)

    def pull(
        self,
        source: str | Path,
        *,
        uuid: str = "",
        name: str = "",
        sha256: str = "",
        projector: str | Path = "",
        adapters: Mapping[str, str | Path] | None = None,
        update: bool = False,
        compare: bool = False,
        timeout: float | None = None,
    ) -> Pull:
        """Start a download from an address or a file. The default `uuid` is made from the name.

        A file that lies below none of the mesh's import folders is linked into one if the mesh runs on this machine and on the same disk.

        If neither is given and the model of another owner has the default name, the name begins with the owner of this one.

        `projector` is the source of the model's multimodal projector, or `none`; by default the one beside the model on the Hub.
        `adapters` are the sources of LoRA adapters by the names under which servers use them; None: as before, empty: no adapters.
        `update` fetches a model that is there again, also from another source; the model changes in one step. `compare` looks whether the
        source of a model that is there has changed, for 3 s at most: `download.source_changed` of the result.

        SourceRefused, whose remedy says how to bring it in, for any other file outside those folders.
        """
        address = address_of(source)
        request = download_pb2.StartDownloadRequest(
            model_uuid=uuid_of_pull(source, uuid=uuid, name=name),
            source=address,
            name=name,
            sha256=sha256,
            projector=projector if projector == "none" else address_of(projector),
            adapters=_adapters(adapters),
            update=update,
            compare=compare,
        )
        try:
            return Pull(self._mesh, self._start(request, timeout))
        except errors.SourceRefused as refused:
            outside = refused.metadata.get("rule") == "folder"
            # It may wait for a command that copies the same files.
            if not outside or not hand_over(request, self._mesh.profile.url):
                name_way_of_file(refused, source, address)
                raise
        except errors.DownloadConflict as taken:
            other = "" if uuid or name else name_with_owner(address, taken.metadata.get("source", ""))
            if not other:
                raise
            request.model_uuid, request.name = default_uuid(other), other
        return Pull(self._mesh, self._start(request, timeout))

    def _start(self, request: download_pb2.StartDownloadRequest, timeout: float | None) -> download_pb2.Download:
        return self._call(f"{DOWNLOAD}/StartDownload", request, download_pb2.Download, timeout)

    def pulling(self, model: Model, *, timeout: float | None = None) -> Pull:
        """Return the download of a model, whether it is running or has ended."""
        request = download_pb2.GetDownloadRequest(model_uuid=model_uuid_of(model))
        return Pull(self._mesh, self._call(f"{DOWNLOAD}/GetDownload", request, download_pb2.Download, timeout))

    def downloads(self) -> Iterator[download_pb2.Download]:
        """Yield all downloads, newest first."""
        request = download_pb2.ListDownloadsRequest()
        return self.pages(f"{DOWNLOAD}/ListDownloads", request, download_pb2.ListDownloadsResponse, "downloads")

    def cancel(self, model: Model, *, timeout: float | None = None) -> download_pb2.Download:
        """Stop a download."""
        request = download_pb2.CancelDownloadRequest(model_uuid=model_uuid_of(model))
        return self._call(f"{DOWNLOAD}/CancelDownload", request, download_pb2.Download, timeout)

    def search(self, query: str, *, limit: int = 0, timeout: float | None = None) -> download_pb2.SearchHubResponse:
        """Search the Hugging Face Hub for GGUF models; at most `limit` repositories, 0: 5. Raises SourceUnavailable."""
        request = download_pb2.SearchHubRequest(query=query, max_repositories=limit)
        return self._call(f"{DOWNLOAD}/SearchHub", request, download_pb2.SearchHubResponse, timeout)

    def store(self, *, timeout: float | None = None) -> download_pb2.Store:
        """Return where models are kept, and how much room is left there."""
        return self._call(f"{DOWNLOAD}/GetStore", download_pb2.GetStoreRequest(), download_pb2.Store, timeout)

    def pause(self, model: Model, *, timeout: float | None = None) -> download_pb2.Download:
        """Stop a download until it is resumed; what has come is kept for a time. Raises DownloadEnded after its end."""
        request = download_pb2.PauseDownloadRequest(model_uuid=model_uuid_of(model))
        return self._call(f"{DOWNLOAD}/PauseDownload", request, download_pb2.Download, timeout)

    def resume(self, model: Model, *, timeout: float | None = None) -> Pull:
        """Let a paused download go on. Raises DownloadEnded after its end."""
        request = download_pb2.ResumeDownloadRequest(model_uuid=model_uuid_of(model))
        return Pull(self._mesh, self._call(f"{DOWNLOAD}/ResumeDownload", request, download_pb2.Download, timeout))

    def delete_download(self, model: Model, *, timeout: float | None = None) -> download_pb2.Download:
        """Remove the record of a download that has ended; its model stays. Raises DownloadNotEnded if it is still running."""
        request = download_pb2.DeleteDownloadRequest(model_uuid=model_uuid_of(model))
        return self._call(f"{DOWNLOAD}/DeleteDownload", request, download_pb2.Download, timeout)


def _adapters(adapters: Mapping[str, str | Path] | None) -> list[download_pb2.AdapterSource]:
    """Return the adapters of a request, in which one called `none` means that the model gets none: an empty list keeps them."""
    if adapters is None:
        return []
    given = adapters or {"none": "none"}
    return [
        download_pb2.AdapterSource(name=name, source=address_of(where) if adapters else "none")
        for name, where in given.items()
    ]
