"""Who calls. Envoy verifies the token and forwards its payload in `x-llamesh-claims`; siblings pass the header along.

Only members of the mesh can reach a service's socket, and Envoy removes a client's own copy, so the header is trusted
(docs/adr/0003). Identity travels in a context variable; domain code takes it as a plain value.
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
"""What ids of keys begin with; tokens of people who have logged in have others."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller: the token's subject, what it may do, and the header to pass along."""

    subject: str
    scopes: frozenset[str]
    contract_id: str = ""
    """Of a key the contract that it carries, else the user's."""
    token_id: str = ""
    header: str = ""
    uid: str = ""
    """The user, whatever its name; empty in tokens from before users had ids."""
    issued: float = 0.0
    """When the token was made, in seconds since 1970."""
    expires: float = math.inf
    """When the token ends, in seconds since 1970. Envoy refuses calls after it; streams that are open then end."""
    user_since: float = 0.0
    """When the user was made: what others of the same name did before is none of its business."""
    user_contract_id: str = ""
    """The user's present contract."""
    standing: int = 0
    """The user's standing when the token was made; 0 in tokens from before users had ids."""

    @property
    def is_key(self) -> bool:
        """Whether the token is a key, which can be revoked."""
        return self.token_id.startswith(KEY_PREFIX)

    def has(self, scope: str) -> bool:
        """Whether the caller may do what the scope names; an administrator may do everything."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def is_admin(self) -> bool:
        """Whether the caller administers the mesh."""
        return "admin" in self.scopes


current_identity: ContextVar[Identity | None] = ContextVar("current_identity", default=None)
"""The caller of the call that is being served; None where it needs none."""


def caller() -> Identity:
    """The caller; UNAUTHENTICATED where there is none."""
    identity = current_identity.get()
    if identity is None:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "this call needs a token")
    return identity


@lru_cache(maxsize=1024)
def read_claims(header: str) -> Identity:
    """Read the forwarded payload of a verified token; UNAUTHENTICATED where it is not one of ours."""
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
