"""Models of the Quant service of this mesh: `quant:MODEL` where QUANT_SERVICE_URL names no other service.

`open` asks the member where the model is, then reads its file or its object. Invariant: no file outside of Quant's folder is read, and the
bytes have the SHA-256 that Quant says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from llamesh.kit.channels import asking, call_options
from llamesh.kit.errors import MeshError, Reason
from llamesh.v1 import quant_pb2_grpc
from llamesh.v1.quant_pb2 import LocateQuantModelRequest, LocateQuantModelResponse
from services.download.sources.file import FileSource
from services.download.sources.quant import model_uuid_of
from services.download.sources.s3 import S3Bucket
from services.download.sources.source import CheckedSource, SourceError, SourceObject


class QuantMemberSource:
    """Reads models of the member `quant`. `folder` is its bucket on one machine, `bucket` that on an S3 server; None: there is none."""

    def __init__(self, quant: quant_pb2_grpc.QuantServiceAsyncStub, folder: Path, bucket: S3Bucket | None) -> None:
        self._quant = quant
        self._files = FileSource([folder])
        self._bucket = bucket

    def check(self, source: str) -> CheckedSource:
        """See Source. The model's name is what Quant calls its file, so the address tells none."""
        return CheckedSource(source, f"quant:{model_uuid_of(source)}", "")

    @asynccontextmanager
    async def open(self, source: str) -> AsyncIterator[SourceObject]:
        """See Source."""
        found = await self._located(model_uuid_of(source))
        model = found.model
        if self._bucket is None:
            async with self._files.open(found.path) as opened:
                yield replace(opened, name=model.name, sha256=model.sha256)
            return
        opening = self._bucket.open(model.object_key, bucket=model.bucket, name=model.name, sha256=model.sha256)
        async with opening as opened:
            yield opened

    async def _located(self, model_uuid: str) -> LocateQuantModelResponse:
        try:
            with asking("quant"):
                return await self._quant.LocateQuantModel(
                    LocateQuantModelRequest(model_uuid=model_uuid), **call_options()
                )
        except MeshError as error:
            known = error.reason != Reason.ERROR_REASON_MODEL_NOT_FOUND
            passing = error.reason == Reason.ERROR_REASON_COMPONENT_UNAVAILABLE
            raise SourceError(error.message, status=0 if known else 404, passing=passing) from error
