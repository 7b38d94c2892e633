"""Who calls. Envoy verifies the token and forwards its payload in `x-llamesh-claims`; siblings pass the header along.

Only members of the mesh can reach a service's socket, and Envoy removes a client's own copy, so the header is trusted
(docs/adr/0003). Identity travels in a context variable; domain code takes it as a plain value.
"""

from __future__ import annotations

import base64
import binascii
import json
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

from llamesh.kit.errors import MeshError, Reason

CLAIMS_HEADER = "x-llamesh-claims"
ISSUER = "llamesh"
AUDIENCE = "llamesh"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller: the token's subject, what it may do, and the header to pass along."""

    subject: str
    scopes: frozenset[str]
    contract_id: str = ""
    token_id: str = ""
    header: str = ""

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
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "the token's claims cannot be read") from error
    return Identity(
        subject=str(subject),
        scopes=scopes,
        contract_id=str(claims.get("contract", "")),
        token_id=str(claims.get("jti", "")),
        header=header,
    )
