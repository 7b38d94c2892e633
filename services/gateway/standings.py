"""What users may do now, told to every member: all users, and which of their earlier standings have ended.

A token carries the standing that its user had when it was made. The standing rises with every change of role, contract, state or password,
and the earlier one is told as ended until the last token that was made with it has expired: this tells Envoy which tokens to ask Admission
about.

Invariant: a change is told to this process's watchers at once, one made by another gateway on the same database within `RESYNC_SECONDS`.
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

from llamesh.kit.database import Base, Database, Timestamp, is_unavailable
from llamesh.kit.errors import MeshError
from llamesh.kit.reflector import LISTED_FOR
from llamesh.kit.standings import standing_id
from llamesh.v1 import gateway_pb2
from services.gateway.tables import User

RESYNC_SECONDS = 1.0
"""How often changes made by another gateway on the same database are looked for."""
AWAY_SECONDS = 1.0
"""How soon they are looked for again if the database did not answer."""
BATCH = 1000
"""Users, or ended standings, in one message of a watch."""


class EndedRow(Base):
    """A standing that has ended, kept until every token that was made with it has expired."""

    __tablename__ = "ended_standings"

    uid: Mapped[str] = mapped_column(primary_key=True)
    standing: Mapped[int] = mapped_column(primary_key=True)
    tokens_until: Mapped[datetime] = mapped_column(Timestamp)


class ChangesRow(Base):
    """One row that counts the changes of all standings, so that whether there was one is one small question."""

    __tablename__ = "standings_changes"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


@dataclass(frozen=True, slots=True)
class _Present:
    """All there is to tell."""

    number: int = 0
    listed: datetime | None = None
    """When all was read."""
    users: Mapping[str, gateway_pb2.Standing] = field(default_factory=dict)
    ended: frozenset[str] = frozenset()


class Standings:
    """The standings of all users. `now` gives the time."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        # A SQLite file belongs to one process: nobody else changes users in it.
        self._resync = RESYNC_SECONDS if database.schema else None
        self._present = _Present()
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    async def end(self, session: AsyncSession, user: User) -> None:
        """Within the transaction that changes what a user may do: its standing ends, and a new one begins."""
        if user.tokens_until is not None and user.tokens_until > self._now():
            session.add(EndedRow(uid=user.uid, standing=user.standing, tokens_until=user.tokens_until))
        user.standing += 1
        user.tokens_until = None
        await self.count(session)

    async def count(self, session: AsyncSession) -> None:
        """Within a transaction that changes users: let others see that there was a change."""
        await session.execute(update(ChangesRow).values(number=ChangesRow.number + 1))

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that changes users, as `Database.begin`. What was committed is told however the call ends."""
        try:
            async with self._database.begin() as session:
                await _one_at_a_time(session)
                yield session
        finally:
            # Also if the caller left, or the answer to the commit was lost: the transaction may have happened.
            self._changed.set()

    async def users_of(self, contract_id: str) -> int:
        """How many users have a contract, once the changes that are under way have ended."""
        query = select(func.count()).select_from(User).where(User.contract_id == contract_id)
        async with self._database.begin() as session:
            await _one_at_a_time(session)
            return await session.scalar(query) or 0

    async def prune(self) -> None:
        """Forget ended standings whose tokens have all expired."""
        async with self._database.begin() as session:
            await session.execute(delete(EndedRow).where(EndedRow.tokens_until <= self._now()))

    async def watch(self) -> AsyncIterator[gateway_pb2.WatchStandingsResponse]:
        """Everything, then each change; see the contract. Ends after `LISTED_FOR`: a new watch is told all without what has expired."""
        told = _Present()
        until = self._now() + LISTED_FOR
        synced = False
        while True:
            # The event that will announce the next change is taken before looking, so that none falls in between.
            if self._changed.is_set():
                self._changed = asyncio.Event()
            announced = self._changed
            if synced and self._now() >= until:
                return
            try:
                present = await self._read()
            except MeshError as error:
                if not synced or not is_unavailable(error):
                    raise
                await asyncio.sleep(AWAY_SECONDS)
                continue
            for message in _difference(told, present):
                yield message
            told = present
            if not synced:
                synced = True
                yield gateway_pb2.WatchStandingsResponse(synced=True)
            try:
                async with asyncio.timeout(self._resync or LISTED_FOR.total_seconds()):
                    await announced.wait()
            except TimeoutError:
                continue

    async def _read(self) -> _Present:
        async with self._turn, self._database.read() as session:
            # Read first: a change that comes between the two is read again, not missed.
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
    """Wait until no other transaction changes users, and keep others waiting until this one ends."""
    await session.execute(select(ChangesRow.number).with_for_update())


def encoded(user: User) -> gateway_pb2.Standing:
    """A user's standing as the contract has it."""
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


def _difference(told: _Present, present: _Present) -> Iterable[gateway_pb2.WatchStandingsResponse]:
    if told.number == present.number:
        return
    gone = [gateway_pb2.Standing(uid=uid, deleted=True) for uid in told.users if uid not in present.users]
    changed = [user for uid, user in present.users.items() if told.users.get(uid) != user]
    users, ended = gone + changed, sorted(present.ended - told.ended)
    for start in range(0, max(len(users), len(ended)), BATCH):
        yield gateway_pb2.WatchStandingsResponse(users=users[start : start + BATCH], ended=ended[start : start + BATCH])
