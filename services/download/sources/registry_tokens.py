"""Tokens for registries: reads the challenge of a registry (`WWW-Authenticate`) and asks its token service.

A registry answers a request without a token with 401 and the address of a token service (the realm). The token service returns a token
that may read one repository, without credentials if the repository is public. The scope is that of the repository, whatever the registry
asks for. Invariant: credentials go to the registry itself and to the token service that the operator named, to nobody else.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from yarl import URL

from llamesh.kit.source_places import RegistryPlace
from services.download.sources.http_client import HttpClient, body_of, expect
from services.download.sources.source import SourceError, SourceRefusedError

MAX_TOKEN_ANSWER = 64 << 10
"""Maximum size of the answer of a token service in bytes."""
MAX_TOKENS = 32
"""Maximum number of tokens that are kept for a registry, one for each repository."""
MAX_TOKEN_SECONDS = 3600.0
"""Maximum time for which a token is used again, whatever its service says."""
_DEFAULT_SECONDS = 60.0
"""Lifetime of a token whose service gives none, by the specification."""
_MARGIN_SECONDS = 10.0
"""Time before its end at which a token is not used any more."""
_MAX_CHALLENGE = 4096
_CHALLENGE = re.compile(r"(?P<scheme>bearer|basic)(?=[ ,]|$)(?P<rest>.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r'([a-z_]{1,32}) ?= ?(?:"([^"\\]{0,2048})"|([^\s",]{1,2048}))', re.ASCII | re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,32768}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Challenge:
    """How a registry wants to be asked: `scheme` is basic or bearer; `realm` and `service` are of a token service."""

    scheme: str
    realm: str = ""
    service: str = ""


def read_challenge(headers: Sequence[str]) -> Challenge | None:
    """Return the first challenge that can be met; None if there is none."""
    for header in headers:
        found = _CHALLENGE.match(header[:_MAX_CHALLENGE].strip())
        if found is None:
            continue
        if found["scheme"].lower() == "basic":
            return Challenge("basic")
        given = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(found["rest"])}
        if given.get("realm"):
            return Challenge("bearer", given["realm"], given.get("service", ""))
    return None


class RegistryTokens:
    """Authorizations for the repositories of one registry. `origin` is its address; `clock` is monotonic, in seconds."""

    def __init__(self, client: HttpClient, origin: URL, place: RegistryPlace, clock: Callable[[], float]) -> None:
        self._client = client
        self._origin = origin
        self._place = place
        self._clock = clock
        self._known: dict[str, tuple[SecretStr, float]] = {}
        """Header and its end by repository, the oldest first."""

    def known(self, repository: str) -> SecretStr | None:
        """Return the header with which a repository was read last, None if it has ended."""
        header, end = self._known.get(repository, (None, 0.0))
        return header if self._clock() < end else None

    async def answer(self, challenge: Challenge, repository: str) -> SecretStr | None:
        """Return the header that a challenge asks for; None if it needs credentials that there are not. Raises SourceError."""
        basic = self._basic()
        if challenge.scheme == "basic":
            header, seconds = basic, MAX_TOKEN_SECONDS
        else:
            header, seconds = await self._token(challenge, repository, basic)
        if header is not None:
            self._known.pop(repository, None)
            self._known[repository] = header, self._clock() + seconds
            for oldest in list(self._known)[:-MAX_TOKENS]:
                del self._known[oldest]
        return header

    def _basic(self) -> SecretStr | None:
        password = self._place.password.get_secret_value()
        if not password:
            return None
        pair = f"{self._place.username}:{password}".encode()
        return SecretStr(f"Basic {b64encode(pair).decode()}")

    async def _token(
        self, challenge: Challenge, repository: str, basic: SecretStr | None
    ) -> tuple[SecretStr | None, float]:
        realm = self._client.parsed(challenge.realm)
        named = URL(self._place.token_server).origin() if self._place.token_server else self._origin
        if basic is not None and realm.origin() not in (self._origin, named):
            host = realm.host_port_subcomponent
            raise SourceRefusedError(
                f"{self._origin.host} asks for a token of {host}, which gets no credentials: if it is right, an administrator names"
                f" {realm.origin()} as token_server in LLAMESH_OCI_REGISTRIES",
                rule="realm",
            )
        url = realm.update_query({"service": challenge.service, "scope": f"repository:{repository}:pull"})
        what = f"the token service {realm.host}"
        async with self._client.get(url, authorization=basic, came_from=self._origin) as response:
            if response.status in {400, 401, 403, 404}:
                return None, 0.0
            await expect(response, {200})
            body = await body_of(response, MAX_TOKEN_ANSWER, what)
        return _read_token(body, what)


def _read_token(body: bytes, what: str) -> tuple[SecretStr, float]:
    try:
        document: Any = json.loads(body)
        token = document.get("token") or document.get("access_token")
        seconds = document.get("expires_in")
    except (ValueError, AttributeError, RecursionError) as error:
        raise SourceError(f"{what} answers without a token", status=200) from error
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise SourceError(f"{what} answers without a token", status=200)
    lifetime = float(seconds) if isinstance(seconds, int) and 0 < seconds < 1 << 31 else _DEFAULT_SECONDS
    return SecretStr(f"Bearer {token}"), min(lifetime, MAX_TOKEN_SECONDS) - _MARGIN_SECONDS
