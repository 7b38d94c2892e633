"""Contracts: what their holders may use, and their terms as Admission needs them: in memory, yet never older than a change.

Invariant: terms that were changed through this process are in force for the next request; those changed elsewhere, within
`REFRESH_SECONDS`. Envoy is told which contracts limit something (`limited`), so that it asks about the tokens that carry them.
A database that is away stops no inference under a contract that is known, and delays it by `STALE_PATIENCE` at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import String, cast, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.completion import to_completion
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from services.contract.grants import ANY_MODEL, Terms
from services.contract.tables import Clock, ContractRow, KeyRow, NewId

LIMIT_SECONDS = 5.0
"""How long a limit is taken from memory."""
REFRESH_SECONDS = 1.0
"""How often all limits are read, so that they are known when the database goes away."""
STALE_PATIENCE = 0.25
"""Seconds that a request waits for a limit to be read anew; then the known one counts."""
STALE_SECONDS = 1.0
"""How long a limit that could not be read anew counts before that is tried again."""
MAX_LIMITS = 10_000
"""Limits held in memory; beyond that the one read longest ago is forgotten."""

REMOVAL_TIME = timedelta(seconds=60)
"""Longer than the gateway takes to say who has a contract. A removal that takes longer is given up."""

_LISTING = Listing("contracts", BY_TIME)
_ORDER = (ContractRow.create_time, ContractRow.contract_id)


class Contracts:
    """The contracts in SQL."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        new_id: NewId,
        cache: TermsCache,
        users_of: Callable[[str], Awaitable[int]],
        works: Callable[[KeyRow], bool],
    ) -> None:
        """`users_of` says how many users have a contract, `works` whether the owner of a key is still there."""
        self._users_of = users_of
        self._works = works
        self._database = database
        self._clock = clock
        self._new_id = new_id
        self._cache = cache

    async def create(self, display_name: str, max_concurrent_requests: int, models: Sequence[str]) -> ContractRow:
        """Make a contract. No models: all."""
        now = self._clock()
        row = ContractRow(
            contract_id=self._new_id("ctr_"),
            display_name=display_name,
            max_concurrent_requests=max_concurrent_requests,
            models=_distinct(models),
            create_time=now,
            update_time=now,
        )
        async with self._database.begin() as session:
            session.add(row)
        self._cache.invalidate(row.contract_id, _terms(row))
        return row

    async def page(self, asked: PageQuery) -> tuple[Sequence[ContractRow], str]:
        """A page by create time and id, and the token of the next."""
        page = asked.of(_LISTING)
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(select(ContractRow), _ORDER))).all()
        return page.cut(rows, lambda row: (row.create_time, row.contract_id))

    async def get(self, contract_id: str) -> ContractRow:
        """One contract; CONTRACT_NOT_FOUND also while it is being removed, so that nobody is given it meanwhile."""
        async with self._database.read() as session:
            row = await _found(session, contract_id)
        if row.removing_until is not None and row.removing_until > self._clock():
            raise not_found(contract_id)
        return row

    async def hold(self, session: AsyncSession, contract_id: str) -> None:
        """Within a transaction: keep a contract from being removed until the transaction ends; CONTRACT_NOT_FOUND."""
        if contract_id:
            await _found(session, contract_id, lock=True)

    async def terms(self, contract_id: str) -> Terms:
        """What a contract says about its tokens; without one, nothing. CONTRACT_NOT_FOUND."""
        if not contract_id:
            return Terms()
        async with self._database.read() as session:
            return _terms(await _found(session, contract_id))

    async def update(
        self, contract_id: str, display_name: str | None, max_concurrent_requests: int | None, models: Sequence[str]
    ) -> ContractRow:
        """Change what is given; CONTRACT_NOT_FOUND."""
        async with self._database.begin() as session:
            row = await _found(session, contract_id, lock=True)
            if display_name is not None:
                row.display_name = display_name
            if max_concurrent_requests is not None:
                row.max_concurrent_requests = max_concurrent_requests
            if models:
                row.models = _distinct(models)
            row.update_time = self._clock()
        self._cache.invalidate(contract_id, _terms(row))
        return row

    async def delete(self, contract_id: str) -> ContractRow:
        """Remove one; CONTRACT_NOT_FOUND, or CONTRACT_IN_USE while a user has it or a key that works carries it.

        First it is marked, so that the gateway gives it to nobody from then on, then asked who has it: whoever got it before the mark is
        counted. A key is added in a transaction that holds the contract.
        """
        until = self._clock() + REMOVAL_TIME
        await self._mark(contract_id, until)
        try:
            return await self._remove(contract_id, until)
        except BaseException:
            with suppress(MeshError):  # it ends by itself
                await to_completion(self._mark(contract_id, None))
            raise

    async def _mark(self, contract_id: str, until: datetime | None) -> None:
        async with self._database.begin() as session:
            row = await _found(session, contract_id, lock=True)
            row.removing_until = until

    async def _remove(self, contract_id: str, until: datetime) -> ContractRow:
        users = await self._users_of(contract_id)
        async with self._database.begin() as session:
            row = await _found(session, contract_id, lock=True)
            if row.removing_until != until or until <= self._clock():
                raise MeshError(
                    Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
                    f"the contract {contract_id} was being removed by another call, or the gateway took too long",
                    {"component": "contract"},
                    retry_after=1,
                )
            query = select(KeyRow).where(
                KeyRow.contract_id == contract_id, KeyRow.revoke_time.is_(None), KeyRow.expire_time > self._clock()
            )
            keys = sum([self._works(key) for key in await session.scalars(query)])
            if users or keys:
                raise MeshError(
                    Reason.ERROR_REASON_CONTRACT_IN_USE,
                    f"the contract {contract_id} is in use: users {users}, keys {keys}",
                    {"contractId": contract_id, "users": users, "keys": keys},
                )
            await session.delete(row)
        self._cache.invalidate(contract_id)
        return row


class TermsCache:
    """The terms of each contract, as last read. `monotonic` gives seconds."""

    def __init__(self, database: Database, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._monotonic = monotonic
        self._known: dict[str, tuple[Terms | None, float]] = {}
        self._changes = 0
        self._limited: frozenset[str] | None = None
        self._changed = asyncio.Event()

    async def get(self, contract_id: str) -> Terms | None:
        """The terms; None if there is no such contract. COMPONENT_UNAVAILABLE if they are not known and cannot be read."""
        known = self._known.get(contract_id)
        if known is None:
            return await self._read(contract_id)
        if known[1] > self._monotonic() or self._database.breaker.cause is not None:
            return known[0]
        try:
            async with asyncio.timeout(STALE_PATIENCE):
                return await self._read(contract_id)
        except (TimeoutError, MeshError):
            self._known[contract_id] = (known[0], self._monotonic() + STALE_SECONDS)
            return known[0]

    async def refresh(self) -> None:
        """Read all terms."""
        changes = self._changes
        query = select(*_TERMS).limit(MAX_LIMITS)
        async with self._database.read() as session:
            terms: dict[str, Terms | None] = {row.contract_id: _terms(row) for row in await session.execute(query)}
            limited = frozenset((await session.scalars(_LIMITED)).all())
        if changes != self._changes:
            return  # what was read may be older than a change: the next round has it
        if len(terms) < MAX_LIMITS:
            terms = dict.fromkeys(self._known) | terms
        for contract_id, each in terms.items():
            self._keep(contract_id, each)
        if limited != self._limited:
            self._limited = limited
            self._note()

    async def watch_limited(self) -> AsyncIterator[frozenset[str]]:
        """Ids of all contracts that limit something, and again whenever they change. COMPONENT_UNAVAILABLE where they cannot be read."""
        told: frozenset[str] | None = None
        while True:
            changed = self._changed
            if self._limited is None:
                await self.refresh()
            elif self._limited != told:
                told = self._limited
                yield told
            else:
                await changed.wait()

    async def _read(self, contract_id: str) -> Terms | None:
        changes = self._changes
        query = select(*_TERMS).where(ContractRow.contract_id == contract_id)
        async with self._database.read() as session:
            row = (await session.execute(query)).first()
        terms = _terms(row) if row else None
        # A change that was committed while we read must not be hidden by what we read before it.
        if changes == self._changes:
            self._keep(contract_id, terms)
        return terms

    def _keep(self, contract_id: str, terms: Terms | None) -> None:
        self._known.pop(contract_id, None)
        if len(self._known) >= MAX_LIMITS:
            del self._known[next(iter(self._known))]
        self._known[contract_id] = (terms, self._monotonic() + LIMIT_SECONDS)

    def invalidate(self, contract_id: str, terms: Terms | None = None) -> None:
        """Read the terms anew: they have changed. `terms`: what they are now, None if the contract is gone."""
        self._changes += 1
        self._known.pop(contract_id, None)
        limited = (self._limited or frozenset()) - {contract_id}
        limited = limited | {contract_id} if terms and terms.limited else limited
        if self._limited is not None and limited != self._limited:
            self._limited = limited
            self._note()

    def _note(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


_TERMS = (ContractRow.contract_id, ContractRow.models, ContractRow.max_concurrent_requests)
_LIMITED = select(ContractRow.contract_id).where(
    or_(ContractRow.max_concurrent_requests > 0, cast(ContractRow.models, String) != f'["{ANY_MODEL}"]')
)
"""Another spelling of "all models" would do no harm: it would be asked about, and allowed."""


def _terms(row: Any) -> Terms:
    return Terms(row.contract_id, tuple(row.models), row.max_concurrent_requests)


async def _found(session: AsyncSession, contract_id: str, *, lock: bool = False) -> ContractRow:
    row = await session.get(ContractRow, contract_id, with_for_update=lock or None)
    if row is None:
        raise not_found(contract_id)
    return row


def not_found(contract_id: str) -> MeshError:
    """The error for a contract that is not there."""
    return MeshError(
        Reason.ERROR_REASON_CONTRACT_NOT_FOUND, f"there is no contract {contract_id}", {"contractId": contract_id}
    )


def _distinct(models: Sequence[str]) -> list[str]:
    return [ANY_MODEL] if not models or ANY_MODEL in models else list(dict.fromkeys(models))
