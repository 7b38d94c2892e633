"""The lease that a member needs for its whole life: without it, it does not start; if it is lost, it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database, Guard
from llamesh.kit.leases import Lease, LeaseHeldError
from llamesh.kit.ownership import Owner
from llamesh.kit.serving import Member, StartRefused


@asynccontextmanager
async def member_lease(
    member: Member,
    database: Database,
    name: str,
    owner: Owner,
    refusal: Callable[[object], str],
    *,
    release: bool = True,
) -> AsyncIterator[Guard]:
    """Hold a lease, and yield its guard. `refusal` makes the message of StartRefused from the description of another owner.

    `release` releases the lease at the end, so that others may take it at once. On SQLite no lease is needed.
    """
    if database.schema is None:
        yield _unguarded
        return
    successors: list[str] = []

    def lost(successor: str) -> None:
        successors.append(successor)
        member.stop()

    lease = Lease(database, name, owner, lost)
    try:
        await lease.acquire(member.stopping)
    except LeaseHeldError as held:
        raise StartRefused(refusal(held)) from held
    lease.start()
    try:
        yield lease.guard
    finally:
        await lease.close(release=release)
    if successors:
        raise StartRefused(refusal(successors[0]))


async def _unguarded(_: AsyncSession) -> None:
    """Allow every transaction."""
