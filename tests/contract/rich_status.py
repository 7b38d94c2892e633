"""Reads the rich status of an error as a client does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2


@dataclass
class Refusal:
    """What a refused call said."""

    code: grpc.StatusCode | None = None
    message: str = ""
    reason: str = ""
    remedy: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    retry_after: float | None = None


def read_refusal(error: grpc.aio.AioRpcError, into: Refusal | None = None) -> Refusal:
    """The parts of an error's status; one without details has an empty reason."""
    refusal = into or Refusal()
    refusal.code, refusal.message = error.code(), error.details() or ""
    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    status = status_pb2.Status.FromString(packed or b"")
    assert not packed or (status.code, status.message) == (error.code().value[0], error.details())
    info, text = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
    bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for item in status.details:
        if item.Unpack(info):
            assert info.domain == "llamesh"
            refusal.reason, refusal.metadata = info.reason, dict(info.metadata)
        elif item.Unpack(text):
            refusal.remedy = text.message
        elif item.Unpack(bad):
            refusal.fields = [violation.field for violation in bad.field_violations]
        elif item.Unpack(retry):
            refusal.retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return refusal


@contextlib.contextmanager
def refused(reason: str) -> Iterator[Refusal]:
    """`with refused("SERVER_NOT_FOUND") as refusal:` demands that the block is refused with this reason."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    read_refusal(caught.value, refusal)
    assert refusal.reason == reason, refusal
