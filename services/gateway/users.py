"""Users: creation, change and deletion, and the rules about them.

Invariants: there is always an enabled administrator. Passwords are never stored or logged, only their hashes.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.channels import DEADLINE
from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.exposure import exposing_setting
from llamesh.kit.logs import log
from llamesh.kit.pages import Listing, PageRequest, Pages
from llamesh.kit.serving import StartRefused
from llamesh.v1 import gateway_pb2
from services.gateway.passwords import Passwords
from services.gateway.standings import Standings
from services.gateway.tables import User

FIRST_ADMIN = "admin"
"""Name of the user that the first start creates."""

DEFAULT_PASSWORD = "admin"  # noqa: S105 - publicly known, so refused unless Envoy listens on loopback only
"""Password of the first user if none is set."""

TOKENS_MARGIN = timedelta(days=1)
"""Margin on the stored expiry of a user's tokens, so that most logins write nothing."""

SIGNING_TIME = timedelta(minutes=1)
"""Margin for the time between storing the expiry of a token and signing the token."""

RECHECK_SECONDS = 1.0
"""Seconds that a transaction that gives a contract to a user waits for the contract service, which answered a moment before."""

_LISTING = Listing("users", (str,))

Role: TypeAlias = gateway_pb2.Role.ValueType


@dataclass(frozen=True, slots=True)
class UserChange:
    """Changes of a user; None leaves a value."""

    password: str | None = None
    role: Role | None = None
    contract_id: str | None = None
    disabled: bool | None = None

    @property
    def rights(self) -> bool:
        """Whether the change concerns the user's rights, which only administrators may change."""
        return (self.role, self.contract_id, self.disabled) != (None, None, None)


KnowContract: TypeAlias = Callable[[str, float], Awaitable[None]]
"""Raises CONTRACT_NOT_FOUND if there is no contract with this id; waits at most this number of seconds for the contract service."""


async def any_contract(_contract_id: str, _deadline: float) -> None:
    """Accept every contract."""


def new_user_id() -> str:
    """Make an id that no other user has or had."""
    return f"usr_{secrets.token_hex(8)}"


class Users:
    """All users. `know_contract` checks a contract before it is given to a user."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        standings: Standings,
        pages: Pages,
        know_contract: KnowContract = any_contract,
        now: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = new_user_id,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._standings = standings
        self._pages = pages
        self._know_contract = know_contract
        self._now = now
        self._new_id = new_id

    async def ensure_first(self, settings: Settings) -> None:
        """Create the first administrator if there are no users.

        Raises:
            StartRefused: other machines can reach Envoy, and LLAMESH_ADMIN_PASSWORD is missing or the default password is still in use.
        """
        async with self._database.begin() as session:
            there = await session.scalar(select(User.username).limit(1))
            admin = await session.get(User, FIRST_ADMIN)
        if there:
            await self._refuse_default_password(settings, admin)
            return
        password = first_password(settings)
        try:
            await self.create(FIRST_ADMIN, password, gateway_pb2.ROLE_ADMIN, "")
        except MeshError as error:
            # Another gateway on the same database has created it first.
            if error.reason != Reason.ERROR_REASON_USER_EXISTS:
                raise

    async def _refuse_default_password(self, settings: Settings, admin: User | None) -> None:
        """Refuse to open a mesh to other machines while its administrator has the default password."""
        if not exposing_setting(settings) or admin is None:
            return
        if await self._passwords.check(DEFAULT_PASSWORD, admin.password_hash) is not None:
            raise StartRefused(
                f"other machines can connect ({exposing_setting(settings)}), and the password of {FIRST_ADMIN} is {DEFAULT_PASSWORD}:"
                f" start without this setting, change the password with `llamesh users password {FIRST_ADMIN}`, and start again"
                " (LLAMESH_ADMIN_PASSWORD counts only before there are users)"
            )

    async def create(self, username: str, password: str, role: Role, contract_id: str) -> User:
        """Create a user; USER_EXISTS if the name is taken, CONTRACT_NOT_FOUND if the contract service does not know the contract."""
        await self._know_contract(contract_id, DEADLINE)
        now = self._now()
        user = User(
            username=username,
            uid=self._new_id(),
            standing=1,
            password_standing=0,
            disabled=False,
            tokens_until=None,
            role=role,
            contract_id=contract_id,
            password_hash=await self._passwords.hash(password),
            create_time=now,
            update_time=now,
        )
        try:
            async with self._standings.changing() as session:
                await self._give(contract_id)
                session.add(user)
                await session.flush()
                await self._standings.count(session)
        except IntegrityError as error:
            raise MeshError(
                Reason.ERROR_REASON_USER_EXISTS, f"there is a user {username!r} already", {"username": username}
            ) from error
        return user

    async def get(self, username: str) -> User:
        """Return a user; USER_NOT_FOUND."""
        async with self._database.read() as session:
            return await _found(session, username)

    async def hold(self, username: str, uid: str, lifetime: timedelta, password_standing: int | None = None) -> User:
        """Store that the user's present standing has a token of this lifetime, before the token is made: an ended standing must be
        published until its last token has expired. An empty `uid` means the present user of that name. `password_standing` belongs to the
        password that was checked.

        Raises:
            MeshError: USER_NOT_FOUND if the user was removed, even if another has its name; USER_DISABLED; WRONG_CREDENTIALS if the
                password has changed since.
        """
        async with self._database.begin() as session:
            user = await _found(session, username)
            if uid not in ("", user.uid):
                raise _not_found(username)
            if user.disabled:
                raise user_disabled(username)
            if password_standing not in (None, user.password_standing):
                raise _password_changed()
            until = self._now() + lifetime
            if user.tokens_until is None or user.tokens_until < until + SIGNING_TIME:
                user.tokens_until = until + TOKENS_MARGIN
        return user

    async def page(self, request: PageRequest) -> tuple[Sequence[User], str]:
        """Return a page of users by name, and the token of the next page."""
        page = self._pages.query(request).of(_LISTING)
        async with self._database.read() as session:
            users = (await session.scalars(page.select(select(User), (User.username,)))).all()
        return page.cut(users, lambda user: (user.username,))

    async def change(self, username: str, change: UserChange, authenticated: User | None = None) -> User:
        """Change a user. `authenticated` is the user whose password was checked for this change.

        Raises:
            MeshError: USER_NOT_FOUND, CONTRACT_NOT_FOUND, LAST_ADMINISTRATOR, or WRONG_CREDENTIALS if the password has changed since.
        """
        await self._know_contract(change.contract_id or "", DEADLINE)
        password_hash = await self._passwords.hash(change.password) if change.password is not None else None
        async with self._standings.changing() as session:
            admins = await _lock_admins(session)
            user = await _found(session, username)
            if authenticated is not None and user.password_hash != authenticated.password_hash:
                raise _password_changed()
            await self._give(change.contract_id)
            before = (user.role, user.contract_id, user.disabled)
            if change.role is not None:
                user.role = change.role
            if change.contract_id is not None:
                user.contract_id = change.contract_id
            if change.disabled is not None:
                user.disabled = change.disabled
            if user.role != gateway_pb2.ROLE_ADMIN or user.disabled:
                _keep_one(admins, username)
            if password_hash is not None or before != (user.role, user.contract_id, user.disabled):
                await self._standings.end(session, user)
            if password_hash is not None:
                # All logins with the earlier password end. Keys stay valid: they have an expiry of their own.
                user.password_hash = password_hash
                user.password_standing = user.standing
            user.update_time = self._now()
        return user

    async def _give(self, contract_id: str | None) -> None:
        """Check a contract in the transaction that gives it to a user. The contract stays until the transaction ends, because its removal
        counts the users afterwards."""
        if contract_id:
            await self._know_contract(contract_id, RECHECK_SECONDS)

    async def delete(self, username: str) -> User:
        """Delete a user; USER_NOT_FOUND or LAST_ADMINISTRATOR."""
        async with self._standings.changing() as session:
            admins = await _lock_admins(session)
            user = await _found(session, username)
            _keep_one(admins, username)
            await self._standings.end(session, user)
            await session.delete(user)
        return user


def first_password(settings: Settings) -> str:
    """Return the first administrator's password: the setting, else "admin" if no setting says that others can connect."""
    chosen = settings.admin_password.get_secret_value() if settings.admin_password else ""
    if exposing_setting(settings) and chosen in ("", DEFAULT_PASSWORD):
        raise StartRefused(
            f"other machines can connect ({exposing_setting(settings)}), and the first administrator has no password of its "
            "own: set LLAMESH_ADMIN_PASSWORD, for instance to the output of `openssl rand -base64 24`"
        )
    if not chosen:
        log.warning("the password of the user admin is admin: change it before others can reach this machine")
    return chosen or DEFAULT_PASSWORD


async def _found(session: AsyncSession, username: str) -> User:
    user = await session.get(User, username, with_for_update=True)
    if user is None:
        raise _not_found(username)
    return user


def _not_found(username: str) -> MeshError:
    return MeshError(Reason.ERROR_REASON_USER_NOT_FOUND, f"there is no user {username!r}", {"username": username})


def user_disabled(username: str) -> MeshError:
    """Return the error for a user who may not log in."""
    return MeshError(Reason.ERROR_REASON_USER_DISABLED, f"the user {username} is disabled", {"username": username})


def _password_changed() -> MeshError:
    return MeshError(Reason.ERROR_REASON_WRONG_CREDENTIALS, "the password has changed in the meantime")


async def _lock_admins(session: AsyncSession) -> set[str]:
    # Locked in one order: if two administrators remove each other at once, the second finds that it is the last.
    acting = (User.role == gateway_pb2.ROLE_ADMIN, User.disabled.is_(False))
    query = select(User.username).where(*acting).order_by(User.username).with_for_update()
    return set((await session.scalars(query)).all())


def _keep_one(admins: set[str], username: str) -> None:
    if admins == {username}:
        raise MeshError(
            Reason.ERROR_REASON_LAST_ADMINISTRATOR,
            f"{username!r} is the last administrator",
            {"username": username},
        )
