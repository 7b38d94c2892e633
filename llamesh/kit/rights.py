"""What a caller may do now: what its token says, and no more than its user's present role grants.

Tokens and keys are signed once and live long; rights change. So every call is held against the users and revoked keys as gateway and
contract service tell them (docs/adr/0017). What a contract allows is decided where models are known: by Admission, and when keys are made.

Invariant: until both lists have arrived, every token is refused with COMPONENT_UNAVAILABLE, which names the service that has not answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import replace

import grpc

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.identity import Identity
from llamesh.kit.revocations import RevocationReflector
from llamesh.kit.standings import StandingReflector, UserRights
from llamesh.v1.gateway_pb2 import Role

ADMIN = "admin"
MANAGE = "manage"
METRICS = "metrics"
"""Read the numbers of the whole mesh, and nothing else: for a key that Prometheus holds."""
INFER = "infer:"
INFER_ANY = f"{INFER}*"

ROLE_SCOPES: dict[Role.ValueType, tuple[str, ...]] = {
    Role.ROLE_INFERENCE: (INFER_ANY,),
    Role.ROLE_USER: (INFER_ANY, MANAGE),
    Role.ROLE_ADMIN: (INFER_ANY, MANAGE, METRICS, ADMIN),
}

START_PATIENCE = 5.0
"""Seconds that a call waits for the lists of a process that has just started."""
NEW_SECONDS = 3.0
"""How old the token of a user may be that nobody has told of yet: its user may have been made by another gateway a moment ago."""
NEW_PATIENCE = 1.5
"""Seconds that its call waits for it: longer than gateways look for each other's changes."""


def role_grants(role: Role.ValueType, scope: str) -> bool:
    """Whether a role grants a scope."""
    granted = ROLE_SCOPES.get(role, ())
    return scope in granted or (scope.startswith(INFER) and INFER_ANY in granted)


class Rights:
    """The present rights of callers. `now` gives seconds since 1970."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.version = 0
        """Rises with every change."""
        self._now = now
        self._users: Mapping[str, UserRights] | None = None
        self._names: dict[str, UserRights] = {}
        self._removed: dict[str, float] = {}
        """When the users were removed whose uids were known, while their tokens may be young."""
        self._revoked: Set[str] | None = None
        self._changed = asyncio.Event()

    def changed(self) -> asyncio.Event:
        """Set with the next change."""
        return self._changed

    @property
    def users(self) -> Collection[UserRights]:
        """All users as far as they are known."""
        return (self._users or {}).values()

    def take_users(self, users: Mapping[str, UserRights], _ended: Iterable[str] = ()) -> None:
        """These are all users."""
        now = self._now()
        gone = {user.uid for user in self._names.values()} - users.keys()
        young = {uid: since for uid, since in self._removed.items() if now - since < NEW_SECONDS}
        self._removed = young | dict.fromkeys(gone, now)
        self._users = users
        self._names = {user.username: user for user in users.values()}
        self._note()

    def take_revoked(self, key_ids: Set[str], _added: object = None) -> None:
        """These are all revoked keys."""
        self._revoked = key_ids
        self._note()

    async def settle(self, identity: Identity) -> None:
        """Wait a moment if not all is known that `of` needs for this caller."""
        if self._silent(identity):
            await self._wait(lambda: not self._silent(identity), START_PATIENCE)
        if not self._silent(identity) and self._may_be_new(identity):
            await self._wait(lambda: not self._may_be_new(identity), NEW_PATIENCE)

    def of(self, identity: Identity) -> Identity:
        """The caller with what is left of its scopes.

        Raises UNAUTHENTICATED or USER_DISABLED where nothing is, COMPONENT_UNAVAILABLE where that is not known.
        """
        silent = self._silent(identity)
        if silent:
            raise MeshError(
                Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
                f"the {silent} service has not said yet what this token may do",
                {"component": silent},
                retry_after=1,
            )
        user = self._user(identity)
        if user is None:
            raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "the user of this token was removed")
        if identity.token_id in (self._revoked or ()):
            raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "the key was revoked")
        if user.disabled:
            raise MeshError(
                Reason.ERROR_REASON_USER_DISABLED, f"the user {user.username} is disabled", {"username": user.username}
            )
        if not identity.is_key and identity.standing < user.password_standing:
            raise MeshError(
                Reason.ERROR_REASON_UNAUTHENTICATED,
                f"the password of {user.username} was changed after this login: log in with the new one",
            )
        return replace(
            identity,
            uid=user.uid,
            user_since=user.create_time,
            user_contract_id=user.contract_id,
            contract_id=identity.contract_id if identity.is_key else user.contract_id,
            scopes=frozenset(scope for scope in identity.scopes if role_grants(user.role, scope)),
        )

    def owner(self, uid: str, username: str, since: float) -> UserRights | None:
        """The user who had this uid, or, where none was kept, this name at that time; None if it was removed."""
        return (self._users or {}).get(uid) if uid else self._named(username, since)

    def _may_be_new(self, identity: Identity) -> bool:
        """Nobody has told of the user of this young token, neither that it is there nor that it was removed."""
        young = self._now() - identity.issued < NEW_SECONDS
        return young and self._user(identity) is None and identity.uid not in self._removed

    def _silent(self, identity: Identity) -> str:
        """Who must speak before anything is known about this caller; nobody: ""."""
        if self._users is None:
            return "gateway"
        return "contract" if identity.is_key and self._revoked is None else ""

    def _user(self, identity: Identity) -> UserRights | None:
        if identity.uid:
            return (self._users or {}).get(identity.uid)
        # A token from before users had ids: of whoever has the name, if it is not older than that user.
        return self._named(identity.subject, identity.issued)

    def _named(self, username: str, since: float) -> UserRights | None:
        user = self._names.get(username)
        return user if user is not None and since >= math.floor(user.create_time) else None

    async def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not done():
                    changed = self._changed
                    await changed.wait()
        except TimeoutError:
            return

    def _note(self) -> None:
        self.version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class RightsReflector:
    """Rights that follow what gateway and contract service tell, until closed."""

    def __init__(self, gateway: grpc.aio.Channel, contract: grpc.aio.Channel) -> None:
        self.rights = Rights()
        self._standings = StandingReflector(gateway, self.rights.take_users)
        self._revocations = RevocationReflector(contract, self.rights.take_revoked)

    def start(self) -> None:
        """Begin to follow."""
        self._standings.start()
        self._revocations.start()

    async def close(self) -> None:
        """Stop following."""
        await asyncio.gather(self._standings.close(), self._revocations.close())
