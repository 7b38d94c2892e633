"""Decides which controller owns the declared servers. On PostgreSQL, which several meshes may share, it is the holder of a lease.

Invariant: a controller writes declared servers only while it holds the lease; the guard checks that in every transaction.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.leases import LEASE_SECONDS, Lease, LeaseHeldError
from llamesh.kit.ownership import owner_of
from llamesh.kit.serving import Member, StartRefused
from llamesh.waiting import Wait

_ONE_MESH = "end it there with `llamesh down`, or set DATABASE_URL to a database of its own"


class Ownership:
    """The lease of this process, if its database needs one."""

    def __init__(self, member: Member, database: Database) -> None:
        self._member = member
        self._successor = ""
        owner = owner_of(member.settings.home, "controller")
        self._lease = Lease(database, "controller", owner, self._lost) if database.schema is not None else None

    async def acquire(self) -> None:
        """Wait for the lease and keep it. Raises StartRefused with the owner's name if another mesh holds it."""
        if self._lease is None:
            return
        try:
            await self._lease.acquire(self._member.stopping, self._show_wait)
        except LeaseHeldError as held:
            raise StartRefused(f"a mesh runs on this database already, {held}: {_ONE_MESH}") from held
        finally:
            self._member.wait_for(None)
        self._lease.start()

    async def guard(self, session: AsyncSession) -> None:
        """Raise if this process may no longer write."""
        if self._lease is not None:
            await self._lease.guard(session)

    async def close(self) -> None:
        """Release the lease."""
        if self._lease is not None:
            await self._lease.close()

    def check(self) -> None:
        """Raise StartRefused if another mesh has taken the lease over."""
        if self._successor:
            raise StartRefused(f"the mesh of {self._successor} has taken over this database: {_ONE_MESH}")

    def _lost(self, successor: str) -> None:
        self._successor = successor
        self._member.stop()

    def _show_wait(self, owner: str) -> None:
        words = f"the end of another mesh on this database, {owner}"
        remedy = f"if it is over, this one goes on within {LEASE_SECONDS:g} s; else {_ONE_MESH}"
        self._member.wait_for(Wait(words, remedy))
