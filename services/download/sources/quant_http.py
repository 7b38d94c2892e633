"""Client of a Quant service over HTTP: `GET /models/{model_uuid}` of quant.proto, as JSON.

A service of another vendor with the same answer, and tokens of its own, works too.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from llamesh.nearest import MAX_NAMES, nearest
from services.download.sources.addresses import AddressRules
from services.download.sources.http_client import SourceAnswerError, service_client
from services.download.sources.quant_models import QuantModel, field_of, read_model
from services.download.sources.source import SourceError


class QuantOverHttp:
    """The service at `url`. The token, if it is not empty, is sent only there."""

    def __init__(self, rules: AddressRules, url: str, token: SecretStr) -> None:
        self._url = url
        self._has_token = bool(token.get_secret_value())
        self._client = service_client(rules, url, token=token)

    async def find(self, model_uuid: str) -> QuantModel:
        """See QuantModels."""
        try:
            document = await self._document(f"/models/{quote(model_uuid, safe='')}")
        except SourceAnswerError as error:
            raise await self._explained(error, model_uuid) from error
        try:
            return read_model(document, model_uuid)
        except ValueError as error:
            raise SourceError(f"the server at QUANT_SERVICE_URL is not a Quant service: {error}") from error

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
        """Return the nearest model that Quant has, as the end of a sentence; empty if Quant lists none."""
        models: Any = []
        with suppress(SourceError):
            document = await self._document("/models")
            models = document.get("models") if isinstance(document, dict) else document
        items = models[:MAX_NAMES] if isinstance(models, list) else []
        names = [field_of(item, "model_uuid") for item in items]
        meant = nearest(model_uuid, [name for name in names if isinstance(name, str)])
        return f": did you mean quant:{meant}?" if meant else ""
