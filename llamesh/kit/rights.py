"""Present rights of callers: the scopes of the token, reduced to those that the user's present role grants.

Tokens and keys are signed once and live long, but rights change. So each call is checked against the users and the revoked keys, which
reflectors mirror from the gateway and the contract service (docs/adr/0017). The interceptor calls `until_known`, which waits a moment if
the lists have not arrived or the user is new, then `of`. Rights of contracts are checked elsewhere: by Admission, and when keys are made.

Invariant: until both lists have arrived, every token is refused with COMPONENT_UNAVAILABLE. The error names the component that
blocks the list if it is known (the database), else the service that has not answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import replace
from functools import partial

import grpc

from llamesh.kit.errors import MeshError, Reason, component_not_ready, error_from_rpc
from llamesh.kit.identity import Identity
from llamesh.kit.revocations import RevocationReflector
from llamesh.kit.standings import StandingReflector, UserRights
from llamesh.v1.gateway_pb2 import Role

ADMIN = "admin"
MANAGE = "manage"
METRICS = "metrics"
"""Allows reading the metrics of the whole mesh, and nothing else: for the key of Prometheus."""
INFER = "infer:"
INFER_ANY = f"{INFER}*"

ROLE_SCOPES: dict[Role.ValueType, tuple[str, ...]] = {
    Role.ROLE_INFERENCE: (INFER_ANY,),
    Role.ROLE_USER: (INFER_ANY, MANAGE),
    Role.ROLE_ADMIN: (INFER_ANY, MANAGE, METRICS, ADMIN),
}

CLOCK_SKEW_SECONDS = 2.0
"""Seconds after its expiry for which a token is valid, because clocks differ; the same as in Envoy (controller/xds/tokens.py)."""
START_PATIENCE = 5.0
"""Seconds that a call waits for the first lists of a process that has just started."""
NEW_SECONDS = 3.0
"""Age in seconds up to which the token of an unknown user is not refused at once: another gateway may have just created the user."""
NEW_PATIENCE = 1.5
"""Seconds that such a call waits for the user; longer than the interval at which gateways read each other's changes."""


def role_grants(role: Role.ValueType, scope: str) -> bool:
    """Whether a role grants a scope."""
    granted = ROLE_SCOPES.get(role, ())
    return scope in granted or (scope.startswith(INFER) and INFER_ANY in granted)


class Rights:
    """Present rights of all callers. `now` returns seconds since 1970."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.version = 0
        """Increases with every change."""
        self._now = now
        self._users: Mapping[str, UserRights] | None = None
        self._names: dict[str, UserRights] = {}
        self._removed: dict[str, float] = {}
        """Removal times of known users by uid, kept while their tokens may still be young."""
        self._revoked: Set[str] | None = None
        self._obstacles: dict[str, str] = {}
        """Component that blocks the first list of a service, by service."""
        self._changed = asyncio.Event()

    def changed(self) -> asyncio.Event:
        """Return the event that the next change sets."""
        return self._changed

    @property
    def knows_users(self) -> bool:
        """Whether the list of users has arrived."""
        return self._users is not None

    @property
    def users(self) -> Collection[UserRights]:
        """All known users."""
        return (self._users or {}).values()

    def take_users(self, users: Mapping[str, UserRights], _ended: Iterable[str] = ()) -> None:
        """Replace the list of users."""
        now = self._now()
        gone = {user.uid for user in self._names.values()} - users.keys()
        young = {uid: since for uid, since in self._removed.items() if now - since < NEW_SECONDS}
        self._removed = young | dict.fromkeys(gone, now)
        self._users = users
        self._names = {user.username: user for user in users.values()}
        self._note()

    def take_revoked(self, key_ids: Set[str], _added: object = None) -> None:
        """Replace the list of revoked keys."""
        self._revoked = key_ids
        self._note()

    def take_obstacle(self, service: str, component: str) -> None:
        """Set the component that blocks the first list of a service; empty: no longer known. Calls do not wait for this list."""
        if self._obstacles.get(service, "") != component:
            self._obstacles[service] = component
            self._note()

    async def until_known(self, identity: Identity) -> None:
        """Wait for a bounded time until `of` can decide about this caller."""
        if self._should_wait(identity):
            await self._wait(lambda: not self._should_wait(identity), START_PATIENCE)
        if not self._silent(identity) and self._may_be_new(identity):
            await self._wait(lambda: not self._may_be_new(identity), NEW_PATIENCE)

    def of(self, identity: Identity) -> Identity:
        """Return the caller with its present scopes.

        Raises:
            MeshError: UNAUTHENTICATED or USER_DISABLED if it has no rights, COMPONENT_UNAVAILABLE if they are not known yet.
        """
        silent = self._silent(identity)
        obstacle = self._obstacles.get(silent, "")
        if obstacle:
            raise component_not_ready(obstacle)
        if silent:
            raise MeshError(
                Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
                f"the {silent} service has not yet sent the rights of this token",
                {"component": silent},
                retry_after=1,
            )
        user = self._user(identity)
        if user is None:
            raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "the user of this token was removed")
        if self.seconds_left(identity) <= 0:
            raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "the token has expired")
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

    def seconds_left(self, identity: Identity) -> float:
        """Return the seconds until the token of a caller expires; infinite if it never does."""
        return identity.expires + CLOCK_SKEW_SECONDS - self._now()

    def owner(self, uid: str, username: str, since: float) -> UserRights | None:
        """Return the user with this uid; without a uid, the user that had this name at that time. None if it was removed."""
        return (self._users or {}).get(uid) if uid else self._named(username, since)

    def _may_be_new(self, identity: Identity) -> bool:
        """Whether the token is young and its user neither known nor removed."""
        young = self._now() - identity.issued < NEW_SECONDS
        return young and self._user(identity) is None and identity.uid not in self._removed

    def _silent(self, identity: Identity) -> str:
        """Name of the service whose list is needed for this caller and has not arrived; empty if none."""
        if self._users is None:
            return "gateway"
        return "contract" if identity.is_key and self._revoked is None else ""

    def _should_wait(self, identity: Identity) -> bool:
        """Whether a list that is needed for this caller may arrive in a moment."""
        silent = self._silent(identity)
        return bool(silent) and not self._obstacles.get(silent)

    def _user(self, identity: Identity) -> UserRights | None:
        if identity.uid:
            return (self._users or {}).get(identity.uid)
        # A token from before users had ids belongs to the user with its name, unless it is older than that user.
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
    """Keeps `rights` up to date from gateway and contract service until closed."""

    def __init__(self, gateway: grpc.aio.Channel, contract: grpc.aio.Channel) -> None:
        self.rights = Rights()
        self._standings = StandingReflector(gateway, self.rights.take_users)
        self._revocations = RevocationReflector(contract, self.rights.take_revoked)
        self._standings.on_failure = partial(self._failed, "gateway")
        self._revocations.on_failure = partial(self._failed, "contract")

    def start(self) -> None:
        """Start watching."""
        self._standings.start()
        self._revocations.start()

    async def close(self) -> None:
        """Stop watching."""
        await asyncio.gather(self._standings.close(), self._revocations.close())

    def _failed(self, service: str, error: grpc.aio.AioRpcError) -> None:
        """Record the component that the service itself waits for, if its error names one."""
        component = error_from_rpc(error, service).metadata.get("component", "")
        self.rights.take_obstacle(service, "" if component == service else str(component))
