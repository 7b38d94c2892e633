"""Requests for transfers: whether one starts a transfer, and with which values. No I/O.

A transfer of a model that is there, an update or a repair, may fail or be cancelled, and the model stays. Its row keeps the values of the
request that brought the model (`fetched_with`), and the next request is compared with them, not with those of the transfer that failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from llamesh.kit.errors import MeshError, Reason, name_of
from services.download.source_names import same_source, shown_source
from services.download.tables import UNENDED, ModelRow, TransferRow, TransferState

CORRUPT = name_of(Reason.ERROR_REASON_MODEL_CORRUPT)
_REQUESTED = ("name", "source", "shown_source", "projector", "adapters", "expected_sha256")
"""Columns that have the values of a request."""


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """A request for a transfer.

    An empty field means the value of the request that brought the model, or of the previous one if there is no model, unless the request is
    complete (`is_complete`); or else the default.
    """

    model_uuid: str
    source: str = ""
    shown_source: str = ""
    name: str = ""
    sha256: str = ""
    requested_by: str = ""
    projector: str = ""
    adapters: Sequence[tuple[str, str]] = ()
    """Name and source of each."""
    update: bool = False
    """Whether a model that is there is fetched again, possibly from another source."""


def return_to_model(row: TransferRow, model: ModelRow, request: TransferRequest) -> None:
    """Give a transfer that has ended the values that brought the model which is there.

    If the model is sound and the request is no update, the transfer is that of the model: it has succeeded.
    """
    if row.state in UNENDED:
        return
    for column, value in row.fetched_with.items():
        setattr(row, column, value)
    row.fetched_with = {}
    if row.state != TransferState.SUCCEEDED and not model.problem and not request.update:
        row.state = TransferState.SUCCEEDED
        row.sha256, row.revision = model.sha256, model.revision
        row.bytes_done = row.bytes_total = model.size_bytes
        row.error_reason = row.error_message = ""


def must_start(row: TransferRow | None, has_model: bool, request: TransferRequest) -> bool:
    """Return whether a request starts a transfer; False if the present one serves it. Raises DOWNLOAD_CONFLICT if they differ."""
    if row is None or not (row.state in UNENDED or (row.state == TransferState.SUCCEEDED and has_model)):
        return True
    if request.update and row.state == TransferState.SUCCEEDED:
        return True
    known = row.sha256 if row.state == TransferState.SUCCEEDED else row.expected_sha256
    if not same_source(request.source, row.source) or request.sha256 not in ("", known):
        raise _other_source(row, request, known)
    if request.projector in ("", row.projector) and list(map(list, request.adapters)) in ([], row.adapters):
        return False
    if row.state != TransferState.SUCCEEDED:
        words = (
            f"{row.model_uuid} is being fetched with another projector or other adapters: cancel that download first"
        )
        raise _conflict(row, words)
    return True


def _other_source(row: TransferRow, request: TransferRequest, known: str) -> MeshError:
    """The refusal of a request for another source than that of the transfer, or for another digest than `known`."""
    source = shown_source(row.shown_source)
    is_file = all(each.startswith(("file:", "/")) for each in (row.source, request.source))
    if is_file and row.state == TransferState.SUCCEEDED and request.shown_source == source:
        words = f"{row.model_uuid} was fetched from another file {source}, or from this one before it changed"
        return _conflict(row, words, rule="changed")
    words = f"{row.model_uuid} is or was fetched from {source}" + (f" with SHA-256 {known}" if known else "")
    return _conflict(row, f"{words}, which differs from this request")


def _conflict(row: TransferRow, words: str, rule: str = "") -> MeshError:
    details = {"modelUuid": row.model_uuid, "source": shown_source(row.shown_source), "state": row.state}
    return MeshError(Reason.ERROR_REASON_DOWNLOAD_CONFLICT, words, details | ({"rule": rule} if rule else {}))


def is_complete(row: TransferRow, has_model: bool, request: TransferRequest) -> bool:
    """Return whether a request that starts a transfer takes nothing from the previous request except the name.

    A request with a source is complete, because the previous one may have failed for exactly the value that this one leaves out, and a file
    that a command handed over for it is gone. If the source has brought the model that is there, or the request updates that model, the
    request leaves out what the model keeps.
    """
    keeps = has_model and (request.update or same_source(request.source, row.source))
    return bool(request.source) and not keeps


def required_sha256(row: TransferRow, has_model: bool, request: TransferRequest) -> str:
    """Return the SHA-256 that the transfer of a request requires; empty if any is accepted."""
    # The bytes that replace those of a model have another digest.
    if request.update or is_complete(row, has_model, request):
        return request.sha256
    return request.sha256 or row.expected_sha256


def apply(row: TransferRow, has_model: bool, request: TransferRequest) -> None:
    """Give a transfer the values of a request that starts it."""
    if has_model and row.source:
        row.fetched_with = {column: getattr(row, column) for column in _REQUESTED}
    complete = is_complete(row, has_model, request)
    row.name = request.name or row.name if same_source(request.source, row.source) else request.name
    row.expected_sha256 = required_sha256(row, has_model, request)
    row.projector = request.projector if complete else request.projector or row.projector
    if request.adapters or complete:
        row.adapters = list(map(list, request.adapters))
    if request.source:
        row.source, row.shown_source = request.source, request.shown_source


def queue_paused(row: TransferRow, now: datetime) -> None:
    """Let a paused transfer go on."""
    row.state = TransferState.QUEUED
    row.resume_count += 1
    row.update_time = now
