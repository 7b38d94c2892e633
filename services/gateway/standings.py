"""The standings of users: versions of their rights, and the ended standings that Envoy must check.

A token contains its user's standing at the time it was made. The standing increases with each change of role, contract, state or password.
The earlier standing is published as ended until its last token has expired. Envoy asks Admission about tokens with an ended standing.

A change runs in `changing`, which sets an event; each watch waits for that event, or RESYNC_SECONDS for changes by other gateways, reads
everything if the counter of changes has moved, and sends the difference to its reader.

Invariant: watchers of this process get a change at once; they get a change by another gateway on the same database within RESYNC_SECONDS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from llamesh.kit.change_feed import ChangeFeed
from llamesh.kit.database import Base, Database, Timestamp
from llamesh.kit.reflector import LISTED_FOR
from llamesh.kit.standings import standing_id
from llamesh.v1 import gateway_pb2
from services.gateway.tables import User

RESYNC_SECONDS = 1.0
"""Seconds between two checks for changes by another gateway on the same database."""
MAX_BATCH = 1000
"""Maximum number of users, or of ended standings, in one message of a watch."""


class EndedRow(Base):
    """A standing that has ended; kept until all its tokens have expired."""

    __tablename__ = "ended_standings"

    uid: Mapped[str] = mapped_column(primary_key=True)
    standing: Mapped[int] = mapped_column(primary_key=True)
    tokens_until: Mapped[datetime] = mapped_column(Timestamp)


class ChangesRow(Base):
    """One row that counts the changes of all standings, so that a small query tells whether there was a change."""

    __tablename__ = "standings_changes"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


@dataclass(frozen=True, slots=True)
class _Present:
    """Everything that watchers get."""

    number: int = 0
    listed: datetime | None = None
    """When the standings were read."""
    users: Mapping[str, gateway_pb2.Standing] = field(default_factory=dict)
    ended: frozenset[str] = frozenset()


class Standings:
    """Standings of all users. `now` is the clock."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        # A SQLite file belongs to one process: no other process changes users in it.
        self._feed = ChangeFeed(self._read, RESYNC_SECONDS if database.schema else None)
        self._present = _Present()
        self._turn = asyncio.Lock()

    async def end(self, session: AsyncSession, user: User) -> None:
        """Begin a new standing of a user, in the transaction that changes its rights."""
        if user.tokens_until is not None and user.tokens_until > self._now():
            session.add(EndedRow(uid=user.uid, standing=user.standing, tokens_until=user.tokens_until))
        user.standing += 1
        user.tokens_until = None
        await self.count(session)

    async def count(self, session: AsyncSession) -> None:
        """Count a change, in the transaction that changes users, so that other gateways notice it."""
        await session.execute(update(ChangesRow).values(number=ChangesRow.number + 1))

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction that changes users, as `Database.begin` does. Watchers are notified however the call ends."""
        try:
            async with self._database.begin() as session:
                await _one_at_a_time(session)
                yield session
        finally:
            # Also after a cancellation or a lost answer to the commit: the transaction may have happened.
            self._feed.announce()

    async def users_of(self, contract_id: str) -> int:
        """Count the users with a contract, after all open changes have ended."""
        query = select(func.count()).select_from(User).where(User.contract_id == contract_id)
        async with self._database.begin() as session:
            await _one_at_a_time(session)
            return await session.scalar(query) or 0

    async def prune(self) -> None:
        """Delete ended standings whose tokens have all expired."""
        async with self._database.begin() as session:
            await session.execute(delete(EndedRow).where(EndedRow.tokens_until <= self._now()))

    async def watch(self) -> AsyncIterator[gateway_pb2.WatchStandingsResponse]:
        """Yield everything, then each change; see the contract. Ends after `LISTED_FOR`, so that the next watch drops expired items."""
        sent = _Present()
        until = self._now() + LISTED_FOR
        synced = False
        async for present in self._feed.states():
            if synced and self._now() >= until:
                return
            for message in _difference(sent, present):
                yield message
            sent = present
            if not synced:
                synced = True
                yield gateway_pb2.WatchStandingsResponse(synced=True)

    async def _read(self) -> _Present:
        async with self._turn, self._database.read() as session:
            # Read the number first: a change between the two reads is read again, not missed.
            number = await session.scalar(select(ChangesRow.number)) or 0
            now = self._now()
            if (
                number != self._present.number
                or self._present.listed is None
                or now - self._present.listed >= LISTED_FOR
            ):
                users = {user.uid: encoded(user) for user in await session.scalars(select(User))}
                query = select(EndedRow).where(EndedRow.tokens_until > now)
                ended = frozenset(standing_id(row.uid, row.standing) for row in await session.scalars(query))
                self._present = _Present(number, now, users, ended)
            return self._present


async def _one_at_a_time(session: AsyncSession) -> None:
    """Lock: transactions that change users run one at a time, so that rules over all users hold."""
    await session.execute(select(ChangesRow.number).with_for_update())


def encoded(user: User) -> gateway_pb2.Standing:
    """Encode the standing of a user for the contract."""
    result = gateway_pb2.Standing(
        uid=user.uid,
        username=user.username,
        role=gateway_pb2.Role.ValueType(user.role),
        contract_id=user.contract_id,
        disabled=user.disabled,
        standing=user.standing,
        password_standing=user.password_standing,
    )
    result.create_time.FromDatetime(user.create_time)
    return result


def _difference(sent: _Present, present: _Present) -> Iterable[gateway_pb2.WatchStandingsResponse]:
    if sent.number == present.number:
        return
    gone = [gateway_pb2.Standing(uid=uid, deleted=True) for uid in sent.users if uid not in present.users]
    changed = [user for uid, user in present.users.items() if sent.users.get(uid) != user]
    users, ended = gone + changed, sorted(present.ended - sent.ended)
    for start in range(0, max(len(users), len(ended)), MAX_BATCH):
        yield gateway_pb2.WatchStandingsResponse(
            users=users[start : start + MAX_BATCH], ended=ended[start : start + MAX_BATCH]
        )
