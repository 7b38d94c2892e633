"""Identity of a caller. Envoy verifies the token and sends its payload in `x-llamesh-claims`; services forward the header.

The header is trusted: only members of the mesh can reach a service's socket, and Envoy removes the header from clients' requests
(docs/adr/0003). A context variable holds the identity during a call; domain code gets it as an argument.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

from llamesh.kit.errors import MeshError, Reason

KEY_PREFIX = "key_"
"""Prefix of the token ids of keys. Login tokens have other ids."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller: the token's subject, its scopes, and the header to forward."""

    subject: str
    scopes: frozenset[str]
    contract_id: str = ""
    """Contract of the key; of a login the user's contract."""
    token_id: str = ""
    header: str = ""
    uid: str = ""
    """Id of the user; empty in tokens from before users had ids."""
    issued: float = 0.0
    """When the token was made, in seconds since 1970."""
    expires: float = math.inf
    """When the token ends, in seconds since 1970. Envoy refuses calls after it; streams that are open then end."""
    user_since: float = 0.0
    """When the user was created. Records that are older belong to an earlier user of the same name."""
    user_contract_id: str = ""
    """The user's present contract."""
    standing: int = 0
    """Version of the user's rights when the token was made; 0 in tokens from before users had ids."""

    @property
    def is_key(self) -> bool:
        """Whether the token is a key, which can be revoked."""
        return self.token_id.startswith(KEY_PREFIX)

    def has(self, scope: str) -> bool:
        """Whether the caller has a scope. An administrator has every scope."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def is_admin(self) -> bool:
        """Whether the caller is an administrator."""
        return "admin" in self.scopes


current_identity: ContextVar[Identity | None] = ContextVar("current_identity", default=None)
"""Caller of the current call; None if the call needs none."""


def caller() -> Identity:
    """Return the caller of the current call; UNAUTHENTICATED if it has none."""
    identity = current_identity.get()
    if identity is None:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "this call needs a token")
    return identity


@lru_cache(maxsize=1024)
def read_claims(header: str) -> Identity:
    """Read the forwarded payload of a verified token; UNAUTHENTICATED if it is not a payload of the mesh."""
    try:
        claims = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
        subject = claims["sub"]
        scopes = frozenset(claims.get("scopes", ()))
        issued = float(claims.get("iat", 0))
        expires = float(claims.get("exp", math.inf))
        standing = int(claims.get("standing", 0))
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "the token's claims cannot be read") from error
    return Identity(
        subject=str(subject),
        scopes=scopes,
        contract_id=str(claims.get("contract", "")),
        token_id=str(claims.get("jti", "")),
        header=header,
        uid=str(claims.get("uid", "")),
        issued=issued,
        expires=expires,
        standing=standing,
    )
