"""Encoders: rows of the download service as messages of download.proto and model.proto."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llamesh.kit import gguf
from llamesh.kit.errors import Reason, spec_of
from llamesh.v1.download_pb2 import Download, DownloadError, DownloadState, ListCatalogueModelsRequest
from llamesh.v1.model_pb2 import GgufMetadata, Model, ModelFile, ModelFileRole, ModelOrder, ModelSourceKind, SourceFacts
from llamesh.v1.quant_pb2 import QuantReport
from services.download.model_search import ModelSearch
from services.download.progress import Progress
from services.download.source_names import shown_source
from services.download.tables import ModelRow, TransferRow, TransferState


def download_message(row: TransferRow, progress: Progress | None = None, wait_words: str = "") -> Download:
    """Encode a transfer. `progress`, if given, is newer than the row. `wait_words`: for what a queued one waits."""
    message = Download(
        model_uuid=row.model_uuid,
        name=row.name,
        source=shown_source(row.shown_source),
        state=DownloadState.Value(f"DOWNLOAD_STATE_{row.state}"),
        bytes_done=row.bytes_done,
        bytes_total=row.bytes_total,
        sha256=row.sha256,
        resume_count=row.resume_count,
        revision=row.revision,
    )
    message.create_time.FromDatetime(row.create_time)
    message.update_time.FromDatetime(row.update_time)
    if progress is not None and row.state == TransferState.RUNNING:
        message.bytes_done = progress.done
        message.bytes_total = progress.total
        message.bytes_per_second = progress.rate()
    if wait_words and row.state == TransferState.QUEUED:
        # Instead of the reason of an earlier failure, whose wait has ended.
        message.error.CopyFrom(DownloadError(message=wait_words))
    elif row.error_reason:
        reason = Reason.Value(f"ERROR_REASON_{row.error_reason}")
        message.error.CopyFrom(
            DownloadError(reason=row.error_reason, message=row.error_message, remedy=spec_of(reason).remedy)
        )
    return message


def model_message(row: ModelRow) -> Model:
    """Encode a model of the catalogue."""
    message = Model(
        model_uuid=row.model_uuid,
        name=row.name,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        source=shown_source(row.source),
        revision=row.revision,
        gguf=GgufMetadata(**row.gguf),
        source_facts=SourceFacts(**row.source_facts) if any((row.source_facts or {}).values()) else None,
        problem=row.problem,
        fetched_by=row.fetched_by,
        aliases=row.aliases or (),
        files=[
            ModelFile(
                role=ModelFileRole.Value(f"MODEL_FILE_ROLE_{file.role}"),
                name=file.name,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                problem=file.problem,
            )
            for file in row.files
        ],
    )
    if row.files[0].quality:
        message.quality.CopyFrom(QuantReport(**row.files[0].quality))
    message.create_time.FromDatetime(row.create_time)
    return message


def search_of(request: ListCatalogueModelsRequest) -> ModelSearch:
    """Decode the search of a request for a list of models."""
    order = ModelOrder.Name(request.order_by).removeprefix("MODEL_ORDER_").lower()
    kind = ModelSourceKind.Name(request.source_kind).removeprefix("MODEL_SOURCE_KIND_").lower()
    return ModelSearch(
        query=request.query,
        architecture=request.architecture,
        quantisation=request.quantisation,
        tag=request.tag,
        source_kind=kind if request.source_kind else "",
        order=order if request.order_by else "create_time",
        descending=request.descending,
    )


def quality_fields(report: QuantReport | None) -> dict[str, Any]:
    """Return the set fields of a report, as they are stored with a file."""
    return {field.name: value for field, value in report.ListFields()} if report else {}


def gguf_fields(metadata: gguf.GgufMetadata) -> dict[str, Any]:
    """Return the fields of a GGUF header that the contract has, as they are stored with a model."""
    described = asdict(metadata.description)
    names = GgufMetadata.DESCRIPTOR.fields_by_name
    return {name: described[name] if name in described else getattr(metadata, name) for name in names}
