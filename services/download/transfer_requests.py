"""Requests for transfers: whether one starts a transfer, and what it does to a paused one. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from llamesh.kit.errors import MeshError, Reason
from services.download.source_names import same_source, shown_source
from services.download.tables import UNENDED, TransferRow, TransferState


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """A request for a transfer. An empty field means the value of the previous request, or the default."""

    model_uuid: str
    source: str = ""
    shown_source: str = ""
    name: str = ""
    sha256: str = ""
    requested_by: str = ""
    projector: str = ""
    adapters: Sequence[tuple[str, str]] = ()
    """Name and source of each."""


def must_start(row: TransferRow | None, has_model: bool, request: TransferRequest) -> bool:
    """Return whether a request starts a transfer; False if the present one serves it. Raises DOWNLOAD_CONFLICT if they differ."""
    if row is None or not (row.state in UNENDED or (row.state == TransferState.SUCCEEDED and has_model)):
        return True
    known = row.sha256 if row.state == TransferState.SUCCEEDED else row.expected_sha256
    if not same_source(request.source, row.source) or request.sha256 not in ("", known):
        source = shown_source(row.shown_source)
        raise MeshError(
            Reason.ERROR_REASON_DOWNLOAD_CONFLICT,
            f"{row.model_uuid} is or was fetched from {source}"
            + (f" with SHA-256 {known}" if known else "")
            + ", which differs from this request",
            {"modelUuid": row.model_uuid, "source": source},
        )
    if request.projector in ("", row.projector) and list(map(list, request.adapters)) in ([], row.adapters):
        return False
    if row.state != TransferState.SUCCEEDED:
        words = (
            f"{row.model_uuid} is being fetched with another projector or other adapters: cancel that download first"
        )
        raise MeshError(
            Reason.ERROR_REASON_DOWNLOAD_CONFLICT, words, {"modelUuid": row.model_uuid, "source": row.shown_source}
        )
    return True


def queue_paused(row: TransferRow, now: datetime) -> None:
    """Let a paused transfer go on."""
    row.state = TransferState.QUEUED
    row.resume_count += 1
    row.update_time = now
