"""Models that a Quant service has made: `quant:MODEL`.

`open` asks QUANT_SERVICE_URL where the model is (`GET /models/{model_uuid}` of quant.proto, as JSON), then reads Quant's store. A foreign
service with the same answer, and tokens of its own, works too. Invariant: the bytes have the size and the SHA-256 that Quant says.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from services.download.sources.addresses import AddressRules
from services.download.sources.http_client import SourceAnswerError, service_client
from services.download.sources.s3 import S3Bucket, check_key
from services.download.sources.source import (
    CheckedSource,
    SourceChangedError,
    SourceError,
    SourceObject,
    SourceRefusedError,
)

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class QuantModel:
    """Where a model of Quant is. `size`: None if Quant does not say; `bucket`, `name` and `sha256`: "" then."""

    key: str
    bucket: str
    name: str
    size: int | None
    sha256: str


class QuantSource:
    """Reads models of the Quant service at `url`; refuses them all if it is empty. `bucket` is in its store; None: not configured."""

    def __init__(self, rules: AddressRules, url: str, token: SecretStr, bucket: S3Bucket | None) -> None:
        self._url = url
        self._has_token = bool(token.get_secret_value())
        self._client = service_client(rules, url, token=token)
        self._bucket = bucket

    def check(self, source: str) -> CheckedSource:
        """See Source. The model's name is what Quant calls its file, so the address tells none."""
        return CheckedSource(source, f"quant:{self._model_uuid(source)}", "")

    @asynccontextmanager
    async def open(self, source: str) -> AsyncIterator[SourceObject]:
        """See Source."""
        model_uuid = self._model_uuid(source)
        if self._bucket is None:
            raise SourceError("the store of the Quant service is not configured: set QUANT_MINIO_ENDPOINT and its keys")
        model = await self._model(model_uuid)
        check_key(model.key)
        async with self._bucket.open(model.key, bucket=model.bucket, name=model.name, sha256=model.sha256) as found:
            if None not in (model.size, found.size) and model.size != found.size:
                raise SourceChangedError(
                    f"the object of {model_uuid} has {found.size} bytes, and Quant says {model.size}",
                    opened=f"{model.size} bytes",
                    found=f"{found.size} bytes",
                )
            yield found

    def _model_uuid(self, source: str) -> str:
        if not self._url:
            raise SourceRefusedError("no Quant service is configured: set QUANT_SERVICE_URL", rule="quant")
        return model_uuid_of(source)

    async def _model(self, model_uuid: str) -> QuantModel:
        try:
            document = await self._document(f"/models/{quote(model_uuid, safe='')}")
        except SourceAnswerError as error:
            raise await self._explained(error, model_uuid) from error
        try:
            return read_model(document, model_uuid)
        except ValueError as error:
            raise SourceError(f"what answers at QUANT_SERVICE_URL is no Quant service: {error}") from error

    async def _document(self, path: str) -> Any:
        return await self._client.document(self._client.parsed(f"{self._url}{path}"), "the Quant service")

    async def _explained(self, error: SourceAnswerError, model_uuid: str) -> SourceError:
        if error.status == 404:
            words = f"the Quant service has no model {model_uuid}{await self._nearest(model_uuid)}"
        elif error.status in {401, 403} and self._has_token:
            words = "the Quant service refuses the token in QUANT_SERVICE_TOKEN"
        elif error.status in {401, 403}:
            words = "the Quant service asks for a token: set QUANT_SERVICE_TOKEN"
        else:
            return error
        return SourceError(words, status=error.status)

    async def _nearest(self, model_uuid: str) -> str:
        """The nearest model that Quant has, as the end of a sentence; empty if it does not list any."""
        models: Any = []
        with suppress(SourceError):
            document = await self._document("/models")
            models = document.get("models") if isinstance(document, dict) else document
        names = [_field(item, "model_uuid") for item in models] if isinstance(models, list) else []
        near = difflib.get_close_matches(model_uuid, [name for name in names if isinstance(name, str)], n=1)
        return f": did you mean quant:{near[0]}?" if near else ""


def model_uuid_of(source: str) -> str:
    """Return the id of a model from `quant:MODEL`. Raises SourceRefusedError."""
    model_uuid = source.partition(":")[2].removeprefix("//")
    if not _MODEL.fullmatch(model_uuid):
        raise SourceRefusedError("a model of Quant is quant:MODEL, with the model's id", rule="form")
    return model_uuid


def read_model(document: Any, model_uuid: str) -> QuantModel:
    """Read an answer about a model: the message QuantModel as JSON, in either spelling of its names. Raises ValueError."""
    key, size = _field(document, "object_key"), _field(document, "size_bytes")
    if not isinstance(key, str) or not key:
        raise ValueError("its answer has no object_key")
    if _field(document, "model_uuid") not in (None, model_uuid):
        raise ValueError("its answer is about another model")
    bucket, name, sha256 = (_text(document, name) for name in ("bucket", "name", "sha256"))
    # 64-bit numbers are texts in the JSON of a contract.
    number = int(size) if isinstance(size, int | str) and str(size).isascii() and str(size).isdecimal() else None
    digest = sha256.lower().removeprefix("sha256:")
    return QuantModel(key, bucket, name, number or None, digest if _DIGEST.fullmatch(digest) else "")


def _field(document: Any, name: str) -> Any:
    first, *rest = name.split("_")
    camel = first + "".join(map(str.capitalize, rest))
    return document.get(name, document.get(camel)) if isinstance(document, Mapping) else None


def _text(document: Any, name: str) -> str:
    value = _field(document, name)
    return value if isinstance(value, str) else ""
