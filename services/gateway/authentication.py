"""Authentication by user name and password, behind the throttle that slows down guessing.

Invariant: the answer to a wrong password and to an unknown user is the same, and takes the same work.
"""

from __future__ import annotations

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from services.gateway.passwords import Passwords
from services.gateway.tables import User
from services.gateway.throttle import Throttle
from services.gateway.users import user_disabled


class Authenticator:
    """Checks passwords of users."""

    def __init__(self, database: Database, passwords: Passwords, throttle: Throttle) -> None:
        self._database = database
        self._passwords = passwords
        self._throttle = throttle

    async def authenticate(self, username: str, password: str, address: str) -> User:
        """Return the user with this name and password. `address` is the IP address that the attempt comes from; empty if not known.

        Raises:
            MeshError: WRONG_CREDENTIALS, TOO_MANY_LOGINS or USER_DISABLED.
        """
        async with self._throttle.attempt(username, address) as attempt:
            async with self._database.read() as session:
                user = await session.get(User, username)
            kept = await self._passwords.check(password, user.password_hash if user else None, attempt.requester)
            attempt.right = user is not None and kept is not None
        if user is None or kept is None:
            raise MeshError(Reason.ERROR_REASON_WRONG_CREDENTIALS, "wrong user name or password")
        if user.disabled:
            raise user_disabled(username)
        if kept != user.password_hash:
            await self._store_rehashed(username, user.password_hash, kept)
            user.password_hash = kept
        return user

    async def _store_rehashed(self, username: str, old: str, new: str) -> None:
        """Replace a hash whose cost parameters are outdated, unless the password has changed since it was read."""
        async with self._database.begin() as session:
            user = await session.get(User, username, with_for_update=True)
            if user is not None and user.password_hash == old:
                user.password_hash = new
