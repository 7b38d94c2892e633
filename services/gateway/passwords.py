"""Password hashes with argon2id. A hash takes a core and 64 MiB, so few run at the same time, in worker threads.

Invariant: a check takes the same work whether the user exists or not.
"""

from __future__ import annotations

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from llamesh.kit.errors import MeshError, Reason
from services.gateway.fair_queue import FairQueue, QueueFullError, Requester

MAX_AT_ONCE = 2
"""Maximum number of hashes that are computed at the same time: bounds their memory to twice 64 MiB."""

MAX_WAITING = 64
"""Maximum number of hashes that wait; more are refused with TOO_MANY_LOGINS. The queue is fair between networks (fair_queue.py)."""

MEMBER = Requester("members", known=True)
"""Requester of hashes for authenticated callers, and for the first administrator."""


class Passwords:
    """Computes and checks hashes. `hasher` sets their cost."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._queue = FairQueue(MAX_AT_ONCE, MAX_WAITING)
        self._no_user = self._hasher.hash("the password of nobody")

    async def hash(self, password: str) -> str:
        """Return the hash of a password."""
        return await self._in_turn(password, None, MEMBER) or ""

    async def check(self, password: str, kept: str | None, requester: Requester = MEMBER) -> str | None:
        """Check a password against the hash of its user; `kept` is None if there is no such user.

        Return None if it is wrong, else the hash to store, which is a new one if the cost was raised.
        """
        right = await self._in_turn(password, kept or self._no_user, requester)
        return right if kept else None

    async def _in_turn(self, password: str, kept: str | None, requester: Requester) -> str | None:
        try:
            async with self._queue.turn(requester):
                return await asyncio.to_thread(self._work, password, kept)
        except QueueFullError:
            raise MeshError(
                Reason.ERROR_REASON_TOO_MANY_LOGINS,
                "too many logins at the same time",
                {"retryAfterSeconds": 2},
                retry_after=2,
            ) from None

    def _work(self, password: str, kept: str | None) -> str | None:
        if kept is None:
            return self._hasher.hash(password)
        try:
            self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return None
        return self._hasher.hash(password) if self._hasher.check_needs_rehash(kept) else kept
