"""Issues tokens: login tokens for users, and the tokens of their keys. Envoy verifies tokens and passes the claims on.

Invariants: a token never grants more than its user's present role and contract do, even if the token that requests it carries more. Issuer,
audience, times and ids are set here, never by the caller.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from llamesh.kit.channels import asking, call_options
from llamesh.kit.clock import utc_now
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.rights import ADMIN, role_grants
from llamesh.names import AUDIENCE, ISSUER
from llamesh.v1 import admission_pb2, admission_pb2_grpc
from services.gateway.roles import as_role, role_claim
from services.gateway.signing_keys import KeySet, Signer
from services.gateway.tables import User
from services.gateway.users import Users

GRANT_DEADLINE = 5.0
"""Seconds that a login waits for the contract service. A restart of the contract service takes less."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows at most: its scopes, and the contract that its requests count against besides the user's own."""

    scopes: Sequence[str]
    contract_id: str = ""


@dataclass(frozen=True, slots=True)
class Login:
    """A login token and its lifetime."""

    access_token: str
    lifetime: timedelta


class Issuer:
    """Issues tokens. `lifetime` is the lifetime of login tokens; `new_id` makes the ids of tokens."""

    def __init__(
        self,
        users: Users,
        signer: Signer,
        admission: admission_pb2_grpc.AdmissionServiceAsyncStub,
        lifetime: timedelta,
        now: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._users = users
        self._signer = signer
        self._admission = admission
        self._lifetime = lifetime
        self._now = now
        self._new_id = new_id

    async def login(self, authenticated: User) -> Login:
        """Issue the token of a user who has just shown the password; errors as in `Users.hold`."""
        user = await self._users.hold(
            authenticated.username, authenticated.uid, self._lifetime, authenticated.password_standing
        )
        request = admission_pb2.GrantRequest(role=as_role(user.role), contract_id=user.contract_id)
        with asking("contract"):
            granted = await self._admission.Grant(request, **call_options(GRANT_DEADLINE))
        grant = Grant(tuple(granted.scopes), granted.contract_id)
        claims = {"name": user.username, "role": role_claim(user.role)}
        return Login(await self._sign(user, self._new_id(), grant, self._lifetime, claims), self._lifetime)

    async def issue(self, username: str, uid: str, token_id: str, grant: Grant, lifetime: timedelta) -> str:
        """Issue the token of a key. `token_id` is the id that revokes it.

        Raises:
            MeshError: SCOPE_MISSING if the user's present role does not grant this; else as in `Users.hold`.
        """
        # The token in the request may be older than the user's present rights: no key may outlast a right that was taken away.
        user = await self._users.hold(username, uid, lifetime)
        role = as_role(user.role)
        for scope in grant.scopes:
            if not role_grants(role, scope):
                raise _not_granted(user, scope, f"the scope {scope!r}")
        if grant.contract_id != user.contract_id and not role_grants(role, ADMIN):
            raise _not_granted(user, ADMIN, "keys that carry another contract than their own")
        claims = {"user_contract": user.contract_id} if user.contract_id not in ("", grant.contract_id) else {}
        return await self._sign(user, token_id, grant, lifetime, claims)

    async def key_set(self) -> KeySet:
        """Return the keys that verify tokens now, a shared secret included."""
        return await self._signer.key_set()

    async def public_keys(self) -> Sequence[Mapping[str, str]]:
        """Return the keys that anyone may verify tokens with; none if tokens are signed with a shared secret."""
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


def _not_granted(user: User, scope: str, what: str) -> MeshError:
    return MeshError(Reason.ERROR_REASON_SCOPE_MISSING, f"{user.username} may not have {what} now", {"scope": scope})
