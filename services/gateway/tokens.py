"""What a token of the mesh says. Envoy verifies it and hands its payload on as claims; nobody else reads tokens.

Invariant: issuer, audience, times and id are set here, never by who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from llamesh.kit.identity import AUDIENCE, ISSUER
from services.gateway.signing_keys import KeySet, Signer


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows: its scopes, the contract it counts against, and whether Admission is asked for each request."""

    scopes: Sequence[str]
    contract_id: str = ""
    ask: bool = False


class Tokens:
    """Makes tokens. `now` gives the time, `new_id` a new token's id."""

    def __init__(self, signer: Signer, now: Callable[[], datetime], new_id: Callable[[], str]) -> None:
        self._signer = signer
        self._now = now
        self._new_id = new_id

    async def login(self, username: str, role: str, grant: Grant, lifetime: timedelta) -> str:
        """The token of a user who has logged in. `role`: "admin", "user" or "inference"."""
        return await self._sign(username, self._new_id(), grant, lifetime, {"name": username, "role": role})

    async def issue(self, subject: str, token_id: str, grant: Grant, lifetime: timedelta) -> str:
        """A token for a program, with the id that it can be revoked by."""
        return await self._sign(subject, token_id, grant, lifetime, {})

    async def key_set(self) -> KeySet:
        """The keys that verify tokens now."""
        return await self._signer.key_set()

    async def public_keys(self) -> Sequence[Mapping[str, str]]:
        """The keys that anyone may verify tokens with; none with a shared secret."""
        return await self._signer.public_keys()

    async def _sign(self, subject: str, token_id: str, grant: Grant, lifetime: timedelta, more: dict[str, Any]) -> str:
        now = self._now()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            **more,
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
            "jti": token_id,
            "scopes": list(grant.scopes),
            "contract": grant.contract_id,
            "ask": grant.ask,
        }
        return await self._signer.sign(claims, now + lifetime)
