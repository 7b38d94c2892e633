"""Verification of bytes before they become a model, and the error reason for each way in which a transfer can fail.

The hash of a file is checked when its bytes are staged, the GGUF headers when all files are. `early_check` has already checked each header
before or while the bytes arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.kit.gguf import GgufError, GgufMetadata, read_tensors
from llamesh.kit.objects import StagedObject, StoreError
from llamesh.kit.objects.staging import store_errors
from services.download.model_parts import Header, ModelCheck
from services.download.sources import (
    FileRole,
    SourceChangedError,
    SourceError,
    SourceRefusedError,
    SourceTruncatedError,
)
from services.download.sources.shown_texts import shown_text
from services.download.sources.source import NO_QUANT


def check_digest(actual: str, expected: str) -> None:
    """Raise CONTENT_MISMATCH if both SHA-256 are known and differ."""
    if expected and actual and actual != expected:
        words = f"the file has SHA-256 {actual}, expected was {expected}"
        raise _mismatch(words, f"sha256:{expected}", f"sha256:{actual}")


def _mismatch(words: str, expected: object, actual: object) -> MeshError:
    return MeshError(Reason.ERROR_REASON_CONTENT_MISMATCH, words, {"expected": expected, "actual": actual})


async def verify(files: Sequence[tuple[FileRole, StagedObject]]) -> GgufMetadata:
    """Check the headers of the staged files of a model, and return the metadata of the model. Raises GgufError and MODEL_INVALID."""
    model = ModelCheck([role for role, _ in files])
    for _, staged in files:
        model.add(await staged_header(staged))
    return model.metadata()


async def staged_header(staged: StagedObject) -> Header:
    """Read the header of a staged file. Raises GgufError."""
    return await asyncio.to_thread(_read, staged)


def _read(staged: StagedObject) -> Header:
    with store_errors("cannot read a staged object"), staged.open() as file:
        return Header(*read_tensors(file, staged.size))


def source_refusal(error: SourceRefusedError, shown_source: str, field: str = "source") -> MeshError:
    """Return SOURCE_REFUSED for a source that may not be used; QUANT_NOT_CONFIGURED for one of a Quant service that is not there."""
    words = shown_text(str(error))
    if error.rule == NO_QUANT:
        return MeshError(Reason.ERROR_REASON_QUANT_NOT_CONFIGURED, words, {"source": shown_source})
    return MeshError(
        Reason.ERROR_REASON_SOURCE_REFUSED,
        words,
        {"source": shown_source, "rule": error.rule},
        (FieldViolation(field, words),),
    )


def transfer_error(error: Exception, shown_source: str) -> MeshError:
    """Return the error of a transfer for any exception. An unexpected one becomes INTERNAL without details; the log has them.

    SOURCE_UNAVAILABLE means that another try may help. A source that lacks the file, or does not give it, is SOURCE_REFUSED.

    The message may be shown and logged, whatever the source put into the exception (see `shown_texts`).
    """
    words = shown_text(str(error))
    match error:
        case MeshError():
            error.message = shown_text(error.message)
            return error
        case GgufError():
            return MeshError(
                Reason.ERROR_REASON_MODEL_INVALID, words, {"offset": error.offset, "problem": shown_text(error.reason)}
            )
        case SourceRefusedError():
            return source_refusal(error, shown_source)
        case SourceChangedError():
            return _mismatch(words, error.opened, error.found)
        case SourceTruncatedError():
            return _mismatch(words, error.expected, error.actual)
        case SourceError() if 400 <= error.status < 500 and not error.transient:
            return source_refusal(SourceRefusedError(words, rule="missing"), shown_source)
        case SourceError():
            return MeshError(
                Reason.ERROR_REASON_SOURCE_UNAVAILABLE,
                words,
                {"source": shown_source, "status": error.status or ""},
            )
        case StoreError():
            return MeshError(Reason.ERROR_REASON_STORE_UNAVAILABLE, words)
        case _:
            return MeshError(
                Reason.ERROR_REASON_INTERNAL,
                "the transfer failed because of an internal error; the service's log has the details",
            )
