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
from services.gateway.tables import User


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows at most: its scopes, and the contract it counts against beside the user's own."""

    scopes: Sequence[str]
    contract_id: str = ""


class Tokens:
    """Makes tokens. `now` gives the time, `new_id` a new token's id."""

    def __init__(self, signer: Signer, now: Callable[[], datetime], new_id: Callable[[], str]) -> None:
        self._signer = signer
        self._now = now
        self._new_id = new_id

    async def login(self, user: User, role: str, grant: Grant, lifetime: timedelta) -> str:
        """The token of a user who has logged in. `role`: "admin", "user" or "inference"."""
        return await self._sign(user, self._new_id(), grant, lifetime, {"name": user.username, "role": role})

    async def issue(self, user: User, token_id: str, grant: Grant, lifetime: timedelta) -> str:
        """A token for a program of a user, with the id that it can be revoked by."""
        own = {"user_contract": user.contract_id} if user.contract_id not in ("", grant.contract_id) else {}
        return await self._sign(user, token_id, grant, lifetime, own)

    async def key_set(self) -> KeySet:
        """The keys that verify tokens now."""
        return await self._signer.key_set()

    async def public_keys(self) -> Sequence[Mapping[str, str]]:
        """The keys that anyone may verify tokens with; none with a shared secret."""
        return await self._signer.public_keys()

    async def _sign(self, user: User, token_id: str, grant: Grant, lifetime: timedelta, more: dict[str, Any]) -> str:
        now = self._now()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user.username,
            "uid": user.uid,
            "standing": user.standing,
            **more,
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
            "jti": token_id,
            "scopes": list(grant.scopes),
            "contract": grant.contract_id,
        }
        return await self._signer.sign(claims, now + lifetime)
