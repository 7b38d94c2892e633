"""A cache of contract terms, so that an inference request waits for no SQL.

`Contracts` invalidates an entry after each change, and a background task reads all terms every `REFRESH_SECONDS`, so that they are cached
if the database fails. Envoy must ask about requests under contracts that limit something: `watch_limited` sends their ids to the
controller, which configures Envoy with them.

Invariant: a change through this process is in force for the next request, a change through another replica within `REFRESH_SECONDS`.
During an outage of the database, cached terms stay in force, and a request waits for it at most `STALE_PATIENCE`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import String, cast, or_, select

from llamesh.kit.change_feed import ChangeFeed
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError
from services.contract.grants import ANY_MODEL, Terms
from services.contract.tables import ContractRow

TERMS_SECONDS = 5.0
"""Seconds for which cached terms count as fresh."""
REFRESH_SECONDS = 1.0
"""Seconds between two reads of all terms."""
STALE_PATIENCE = 0.25
"""Seconds that a request waits until stale terms are read again; then the cached ones are used."""
STALE_SECONDS = 1.0
"""Seconds for which stale terms that could not be read are used before the next attempt."""
MAX_CACHED = 10_000
"""Maximum number of contracts in the cache; the terms that were read first are dropped first."""

_COLUMNS = (ContractRow.contract_id, ContractRow.models, ContractRow.max_concurrent_requests)
_LIMITED = select(ContractRow.contract_id).where(
    or_(ContractRow.max_concurrent_requests > 0, cast(ContractRow.models, String) != f'["{ANY_MODEL}"]')
)
"""A contract whose JSON spells "all models" differently counts as limited. That is harmless: Envoy asks, and the request is allowed."""


class TermsCache:
    """The terms of each contract at the last read. `monotonic` returns seconds."""

    def __init__(self, database: Database, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._monotonic = monotonic
        self._cached: dict[str, tuple[Terms | None, float]] = {}
        self._changes = 0
        self._limited: frozenset[str] | None = None
        self._feed = ChangeFeed(self._limited_ids)

    async def get(self, contract_id: str) -> Terms | None:
        """Return the terms; None if there is no such contract. COMPONENT_UNAVAILABLE if they are not cached and cannot be read."""
        cached = self._cached.get(contract_id)
        if cached is None:
            return await self._read(contract_id)
        terms, fresh_until = cached
        if fresh_until > self._monotonic() or self._database.breaker.cause is not None:
            return terms
        try:
            async with asyncio.timeout(STALE_PATIENCE):
                return await self._read(contract_id)
        except (TimeoutError, MeshError):
            self._cached[contract_id] = (terms, self._monotonic() + STALE_SECONDS)
            return terms

    async def refresh(self) -> None:
        """Read the terms of all contracts."""
        changes = self._changes
        query = select(*_COLUMNS).limit(MAX_CACHED)
        async with self._database.read() as session:
            terms: dict[str, Terms | None] = {row.contract_id: terms_of(row) for row in await session.execute(query)}
            limited = frozenset((await session.scalars(_LIMITED)).all())
        if changes != self._changes:
            return  # the terms may be older than a change; the next refresh reads the change
        if len(terms) < MAX_CACHED:
            terms = dict.fromkeys(self._cached) | terms
        for contract_id, each in terms.items():
            self._cache(contract_id, each)
        self._set_limited(limited)

    def invalidate(self, contract_id: str, terms: Terms | None = None) -> None:
        """Drop cached terms after a change. `terms` are the new terms; None if the contract was deleted."""
        self._changes += 1
        self._cached.pop(contract_id, None)
        if self._limited is not None:
            others = self._limited - {contract_id}
            self._set_limited(others | {contract_id} if terms and terms.limited else others)

    async def watch_limited(self) -> AsyncIterator[frozenset[str]]:
        """Yield the ids of all contracts that limit something, again after each change. COMPONENT_UNAVAILABLE if the first read fails."""
        sent: frozenset[str] | None = None
        async for limited in self._feed.states():
            if limited != sent:
                sent = limited
                yield limited

    async def _limited_ids(self) -> frozenset[str]:
        while self._limited is None:
            await self.refresh()
        return self._limited

    def _set_limited(self, limited: frozenset[str]) -> None:
        if limited != self._limited:
            self._limited = limited
            self._feed.announce()

    async def _read(self, contract_id: str) -> Terms | None:
        changes = self._changes
        query = select(*_COLUMNS).where(ContractRow.contract_id == contract_id)
        async with self._database.read() as session:
            row = (await session.execute(query)).first()
        terms = terms_of(row) if row else None
        # The read may have started before a change was committed: then its result is not cached.
        if changes == self._changes:
            self._cache(contract_id, terms)
        return terms

    def _cache(self, contract_id: str, terms: Terms | None) -> None:
        self._cached.pop(contract_id, None)
        if len(self._cached) >= MAX_CACHED:
            del self._cached[next(iter(self._cached))]
        self._cached[contract_id] = (terms, self._monotonic() + TERMS_SECONDS)


def terms_of(row: Any) -> Terms:
    """Return the terms in a row of the contract table, or in its columns that hold terms."""
    return Terms(row.contract_id, tuple(row.models), row.max_concurrent_requests)
