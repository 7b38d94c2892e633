"""Leases: leader election between meshes or replicas that share one PostgreSQL, for instance for the role of the controller.

A lease is a row with an owner and an expiry. `acquire` takes a free or expired lease; while another owner has it, it polls every second and
gives up as soon as that owner renews. `start` runs a background task that renews the lease every RENEW_SECONDS. If the task finds another
owner, it calls `on_lost`, once, and the member ends. All times are from the database's clock, so the clocks of machines do not matter. A
restarted owner has the same id and takes its lease back at once. A service with a SQLite file needs no lease: `ownership` is enough.

A transaction of the owner that called `guard` locks the row, so nobody takes the lease meanwhile. PostgreSQL ends the transaction of a
frozen owner (`postgres.IDLE_SHARE`); until then `acquire` waits for the lock.

If the row was removed, for instance with a restored backup, the owner inserts it again with its next renewal, provided that its lease has
not expired meanwhile: another owner may have come and gone then, so `on_lost` is called.

Invariant: only the owner writes in a transaction that called `guard`. An owner that was frozen or cut off, and has lost its lease without
noticing, therefore writes nothing, also after its successor has ended: the lease has another generation then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, String, and_, case, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from llamesh.background import BackgroundTask
from llamesh.kit.clock import utc_now
from llamesh.kit.database import Base, Database, Timestamp
from llamesh.kit.database_failures import DatabaseBusyError
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.logs import log, report_failure
from llamesh.kit.ownership import Owner

LEASE_SECONDS = 30.0
"""Time to live of a lease that is not renewed."""
RENEW_SECONDS = 5.0
"""Seconds between two renewals."""
_POLL_SECONDS = 1.0
_UNKNOWN_OWNER = "an unknown process (the row of the lease was removed)"
_MAX_BUSY = 5
"""Maximum number of attempts in a row that wait for the lock of the row and do not get it. Each waits LOCK_SHARE of the deadline, so all
together wait longer than IDLE_SHARE: who holds the lock for longer is not frozen."""


class LeaseRow(Base):
    """A role and its owner. Each service with such roles has its own table."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner_id: Mapped[str] = mapped_column(String(4096))
    owner_words: Mapped[str] = mapped_column(String(4096))
    generation: Mapped[int]
    """Increases with each change of the owner."""
    expires_at: Mapped[datetime] = mapped_column(Timestamp)


class LeaseHeldError(Exception):
    """Another live owner has the lease; the message names it for people."""


class Lease:
    """A role that this process has or wants. `on_lost` is called once, with the description of the new owner."""

    def __init__(
        self,
        database: Database,
        name: str,
        owner: Owner,
        on_lost: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._name = name
        self._owner = owner
        self._on_lost = on_lost
        self._sleep = sleep
        self._clock = clock
        self._lost = False
        self._generation: int | None = None
        """The generation that this process has taken; None if it has none."""
        self._kept = 0.0
        """When the last statement began that took or renewed the lease."""
        # A longer backoff could outlast the lease and lose it after a short outage.
        self._renewing = BackgroundTask(
            f"renew the lease {name}", self._renew, report_failure, every=RENEW_SECONDS, longest=RENEW_SECONDS
        )

    async def acquire(
        self, stopping: asyncio.Event | None = None, on_wait: Callable[[str], None] = lambda _: None
    ) -> None:
        """Become the owner. Waits until the lease of a dead owner expires; `on_wait` then gets that owner's description.

        Raises LeaseHeldError as soon as the present owner renews the lease or keeps its row locked, or `stopping` is set.
        """
        seen: datetime | None = None
        busy = 0
        while True:
            try:
                if await self._take():
                    return
                busy = 0
            except DatabaseBusyError:
                busy += 1
            present = await self._present()
            words, expires_at = present or (_UNKNOWN_OWNER, None)
            renewed = seen is not None and expires_at is not None and expires_at > seen
            if renewed or busy >= _MAX_BUSY or (stopping is not None and stopping.is_set()):
                raise LeaseHeldError(words)
            if present is None:
                # Its row was removed since the attempt to take it: the next attempt inserts it.
                continue
            if seen is None:
                log.warning("waiting for a lease that another owner may still renew", lease=self._name, owner=words)
                on_wait(words)
            seen = expires_at
            await self._sleep(_POLL_SECONDS)

    def start(self) -> None:
        """Renew the lease until `close`."""
        self._renewing.start()

    async def close(self, *, release: bool = True) -> None:
        """Stop renewing; with `release` the lease expires at once."""
        await self._renewing.close()
        if release and not self._lost:
            ended = update(LeaseRow).where(self._mine).values(expires_at=moment(self._database))
            try:
                async with self._database.begin(guarded=False) as session:
                    await session.execute(ended)
            except Exception as error:
                report_failure(f"release the lease {self._name}", error)

    async def guard(self, session: AsyncSession) -> None:
        """Raise COMPONENT_UNAVAILABLE unless this process is the owner. The owner cannot change before the transaction ends."""
        query = select(LeaseRow.generation).where(self._mine).with_for_update(read=True)
        if await session.scalar(query) is None:
            words = f"another mesh has taken over the role {self._name} on this database"
            if await session.get(LeaseRow, self._name) is None:
                words = (
                    f"the row of the role {self._name} was removed from this database: it is inserted again in seconds"
                )
            raise MeshError(Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, words, {"component": self._name})

    @property
    def _mine(self) -> ColumnElement[bool]:
        """The row, if no other owner has had the lease since this process took it."""
        same = and_(LeaseRow.name == self._name, LeaseRow.owner_id == self._owner.id)
        return and_(same, LeaseRow.generation == self._generation)

    async def _take(self) -> bool:
        new = {
            "owner_id": self._owner.id,
            "owner_words": self._owner.words,
            "expires_at": moment(self._database, LEASE_SECONDS),
        }
        mine = LeaseRow.owner_id == self._owner.id
        taken = (
            insert(LeaseRow)
            .values(name=self._name, generation=1, **new)
            .on_conflict_do_update(
                index_elements=[LeaseRow.name],
                set_={**new, "generation": LeaseRow.generation + case((mine, 0), else_=1)},
                where=or_(mine, LeaseRow.expires_at < moment(self._database)),
            )
            .returning(LeaseRow.generation)
        )
        began = self._clock()
        async with self._database.begin(guarded=False) as session:
            self._generation = await session.scalar(taken)
        self._kept = began
        return self._generation is not None

    async def _present(self) -> tuple[str, datetime] | None:
        """Return the description of the owner and the end of its lease; None if there is no row."""
        async with self._database.read() as session:
            query = select(LeaseRow.owner_words, LeaseRow.expires_at).where(LeaseRow.name == self._name)
            row = (await session.execute(query)).one_or_none()
            return None if row is None else (row[0], row[1])

    async def _renew(self) -> None:
        if self._lost:
            return
        began = self._clock()
        renewed = update(LeaseRow).where(self._mine).values(expires_at=moment(self._database, LEASE_SECONDS))
        async with self._database.begin(guarded=False) as session:
            kept = await session.scalar(renewed.returning(LeaseRow.name)) is not None
            # Until then it has not expired, so nobody else can have had it.
            if not kept and began - self._kept < LEASE_SECONDS:
                kept = await self._insert_again(session)
        if kept:
            self._kept = began
            return
        present = await self._present()
        self._lost = True
        self._on_lost(present[0] if present else _UNKNOWN_OWNER)

    async def _insert_again(self, session: AsyncSession) -> bool:
        """Insert the row of this owner if there is none, and return whether it was inserted."""
        row = {
            "name": self._name,
            "generation": self._generation,
            "owner_id": self._owner.id,
            "owner_words": self._owner.words,
            "expires_at": moment(self._database, LEASE_SECONDS),
        }
        inserted = insert(LeaseRow).values(row).on_conflict_do_nothing().returning(LeaseRow.name)
        return await session.scalar(inserted) is not None


def moment(database: Database, seconds: float = 0.0) -> ColumnElement[datetime]:
    """Return the database's current time plus `seconds`, as an SQL expression."""
    if database.schema is None:
        # A SQLite file belongs to one process, so this process's clock is the only one.
        return literal(utc_now() + timedelta(seconds=seconds), Timestamp)
    return func.clock_timestamp() + literal(timedelta(seconds=seconds))
