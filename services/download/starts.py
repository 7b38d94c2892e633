"""Starts of downloads: decodes a request, checks its addresses and starts its transfer.

Invariant: an address is checked before it is recorded, and the message of a refused address has no credentials and no query.
"""

from __future__ import annotations

from dataclasses import replace

from llamesh.kit.errors import MeshError, Reason
from llamesh.model_addresses import shown_address
from llamesh.v1.download_pb2 import StartDownloadRequest
from services.download.integrity import Integrity
from services.download.model_names import check_name, default_name
from services.download.source_comparison import SourceComparison
from services.download.sources import CheckedSource, Source, SourceRefusedError
from services.download.tables import MAX_SUBJECT, NO_FILE, TransferRow
from services.download.transfer_requests import TransferRequest
from services.download.transfers import Transfers
from services.download.verification import source_refusal


class Starts:
    """Starts downloads. `has_quant` says whether a model without an address is asked of a Quant service."""

    def __init__(
        self, transfers: Transfers, integrity: Integrity, source: Source, comparison: SourceComparison, has_quant: bool
    ) -> None:
        self._transfers = transfers
        self._integrity = integrity
        self._source = source
        self._comparison = comparison
        self._has_quant = has_quant

    async def start(self, request: StartDownloadRequest, subject: str) -> TransferRow:
        """Start the download that `subject` requests, unless the present one serves the request. Raises MeshError."""
        wanted = self._transfer_request(request, request.source, subject)
        # If a model's object is missing, its transfer must not count as succeeded, so that this call starts it again and repairs the model.
        await self._integrity.check_object(request.model_uuid)
        try:
            return await self._transfers.start(wanted)
        except MeshError as error:
            if error.reason != Reason.ERROR_REASON_DOWNLOAD_NOT_FOUND:
                raise
            source = self._quant_source(request.model_uuid)
            return await self._transfers.start(self._transfer_request(request, source, subject))

    async def source_has_changed(self, request: StartDownloadRequest, row: TransferRow) -> bool:
        """Return whether the source of the model that is there has other bytes now, if the request asks for it."""
        return request.compare and await self._comparison.has_changed(row)

    def _transfer_request(self, request: StartDownloadRequest, address: str, subject: str) -> TransferRequest:
        if request.name:
            check_name("name", request.name)
        wanted = TransferRequest(
            request.model_uuid,
            name=request.name,
            sha256=request.sha256.lower(),
            requested_by=subject[:MAX_SUBJECT],
            update=request.update,
        )
        if request.projector == NO_FILE:
            wanted = replace(wanted, projector=NO_FILE)
        elif request.projector:
            wanted = replace(wanted, projector=self._checked(request.projector, "projector").address)
        if [(each.name, each.source) for each in request.adapters] == [(NO_FILE, NO_FILE)]:
            wanted = replace(wanted, adapters=[(NO_FILE, NO_FILE)])
        elif request.adapters:
            checked = [(each.name, self._checked(each.source, "adapters").address) for each in request.adapters]
            wanted = replace(wanted, adapters=checked)
        if not address:
            return wanted
        source = self._checked(address, "source")
        # If the address contains no name, the model gets its name when the source is opened.
        name = request.name or (default_name(source.name, request.model_uuid) if source.name else "")
        return replace(wanted, source=source.address, shown_source=source.shown, name=name)

    def _checked(self, address: str, field: str) -> CheckedSource:
        try:
            return self._source.check(address)
        except SourceRefusedError as error:
            raise source_refusal(error, shown_address(address), field) from error

    def _quant_source(self, model_uuid: str) -> str:
        """Return the source of a model for which no source was given."""
        if not self._has_quant:
            raise MeshError(
                Reason.ERROR_REASON_QUANT_NOT_CONFIGURED,
                f"{model_uuid}: no source was named, and no Quant service is configured",
                {"modelUuid": model_uuid},
            )
        return f"quant:{model_uuid}"
