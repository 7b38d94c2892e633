"""Models that a Quant service has made: `quant:MODEL`.

`open` asks the service where the model is, then reads its store. Invariant: the bytes have the size and the SHA-256 that Quant reports.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

from services.download.sources.file import FileSource
from services.download.sources.quant_models import QuantModel, QuantModels
from services.download.sources.s3 import S3Bucket, check_key
from services.download.sources.source import (
    NO_QUANT,
    CheckedSource,
    SourceChangedError,
    SourceError,
    SourceFile,
    SourceGoneError,
    SourceObject,
    SourceRefusedError,
)

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


class QuantSource:
    """Reads the models that `models` finds. If `models` is None, there is no Quant service and every address is refused.

    `bucket` is in Quant's store, None if the store is not on an S3 server; `files` reads the store's files on this machine.
    """

    def __init__(self, models: QuantModels | None, bucket: S3Bucket | None, files: FileSource) -> None:
        self._models = models
        self._bucket = bucket
        self._files = files

    def check(self, source: str) -> CheckedSource:
        """See Source. Quant gives the file its name when it is opened, so the address has none."""
        return CheckedSource(source, f"quant:{self._parts(source)[1]}", "")

    async def files(self, source: str) -> Sequence[SourceFile]:
        """See Source. Quant makes models of one file."""
        return [SourceFile(source)]

    @asynccontextmanager
    async def open(self, source: str) -> AsyncIterator[SourceObject]:
        """See Source. Raises SourceGoneError if the model was deleted, also while it is read: Quant makes no object a second time."""
        try:
            async with self._opened(source) as found:
                yield found
        except SourceError as error:
            if error.status != 404:
                raise
            raise SourceGoneError(str(error)) from error

    @asynccontextmanager
    async def _opened(self, source: str) -> AsyncIterator[SourceObject]:
        models, model_uuid = self._parts(source)
        model = await models.find(model_uuid)
        async with self._object(model) as found:
            if None not in (model.size, found.size) and model.size != found.size:
                raise SourceChangedError(
                    f"the object of {model_uuid} has {found.size} bytes, and Quant says {model.size}",
                    opened=f"{model.size} bytes",
                    found=f"{found.size} bytes",
                )
            yield replace(
                found, name=model.name or found.name, sha256=model.sha256 or found.sha256, quality=model.report
            )

    def _object(self, model: QuantModel) -> AbstractAsyncContextManager[SourceObject]:
        if model.path:
            return self._files.open(model.path)
        if self._bucket is None:
            raise SourceError("the store of the Quant service is not configured: set QUANT_MINIO_ENDPOINT and its keys")
        check_key(model.key)
        return self._bucket.open(model.key, bucket=model.bucket)

    def _parts(self, source: str) -> tuple[QuantModels, str]:
        if self._models is None:
            raise SourceRefusedError("no Quant service is configured", rule=NO_QUANT)
        model_uuid = source.partition(":")[2].removeprefix("//")
        if not _MODEL.fullmatch(model_uuid):
            raise SourceRefusedError("a model of Quant is quant:MODEL, with the model's id", rule="form")
        return self._models, model_uuid
