"""Contracts: what their holders may use, and the limits as Admission needs them: in memory, yet never older than a change.

Invariant: a limit that was changed through this process is in force for the next request; one changed elsewhere, within `LIMIT_SECONDS`.
A database that is away stops no inference under a contract that is known, and delays it by `STALE_PATIENCE` at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import BY_TIME, Asked, Listing
from services.contract.grants import ANY_MODEL, Terms
from services.contract.tables import Clock, ContractRow, KeyRow, NewId

LIMIT_SECONDS = 5.0
"""How long a limit is taken from memory."""
REFRESH_SECONDS = 2.0
"""How often all limits are read, so that they are known when the database goes away."""
STALE_PATIENCE = 0.25
"""Seconds that a request waits for a limit to be read anew; then the known one counts."""
STALE_SECONDS = 1.0
"""How long a limit that could not be read anew counts before that is tried again."""
MAX_LIMITS = 10_000
"""Limits held in memory; beyond that the one read longest ago is forgotten."""

_LISTING = Listing("contracts", BY_TIME)
_ORDER = (ContractRow.create_time, ContractRow.contract_id)


class Contracts:
    """The contracts in SQL."""

    def __init__(self, database: Database, clock: Clock, new_id: NewId, limits: ConcurrencyLimits) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id
        self._limits = limits

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
        self._limits.forget(row.contract_id)
        return row

    async def page(self, asked: Asked) -> tuple[Sequence[ContractRow], str]:
        """A page by create time and id, and the token of the next."""
        page = asked.of(_LISTING)
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(select(ContractRow), _ORDER))).all()
        return page.cut(rows, lambda row: (row.create_time, row.contract_id))

    async def get(self, contract_id: str) -> ContractRow:
        """One contract; CONTRACT_NOT_FOUND."""
        async with self._database.read() as session:
            return await _found(session, contract_id)

    async def terms(self, contract_id: str) -> Terms:
        """What a contract says about its tokens; without one, nothing. CONTRACT_NOT_FOUND."""
        if not contract_id:
            return Terms()
        row = await self.get(contract_id)
        return Terms(contract_id, tuple(row.models), row.max_concurrent_requests)

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
        self._limits.forget(contract_id)
        return row

    async def delete(self, contract_id: str) -> ContractRow:
        """Remove one; CONTRACT_NOT_FOUND, or CONTRACT_IN_USE while a key that can still be used carries it."""
        async with self._database.begin() as session:
            row = await _found(session, contract_id, lock=True)
            in_use = select(KeyRow.key_id).where(
                KeyRow.contract_id == contract_id, KeyRow.revoke_time.is_(None), KeyRow.expire_time > self._clock()
            )
            if (await session.scalars(in_use.limit(1))).first():
                raise MeshError(
                    Reason.ERROR_REASON_CONTRACT_IN_USE,
                    f"keys use the contract {contract_id}",
                    {"contractId": contract_id},
                )
            await session.delete(row)
        self._limits.forget(contract_id)
        return row


class ConcurrencyLimits:
    """Requests at the same time that each contract allows, as last read. `monotonic` gives seconds."""

    def __init__(self, database: Database, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._monotonic = monotonic
        self._known: dict[str, tuple[int | None, float]] = {}
        self._changes = 0

    async def limit(self, contract_id: str) -> int | None:
        """The limit (0: none); None if there is no such contract. COMPONENT_UNAVAILABLE if it is not known and cannot be read."""
        known = self._known.get(contract_id)
        if known is None:
            return await self._read(contract_id)
        if known[1] > self._monotonic() or self._database.outage.cause is not None:
            return known[0]
        try:
            async with asyncio.timeout(STALE_PATIENCE):
                return await self._read(contract_id)
        except (TimeoutError, MeshError):
            self._known[contract_id] = (known[0], self._monotonic() + STALE_SECONDS)
            return known[0]

    async def refresh(self) -> None:
        """Read all limits."""
        changes = self._changes
        query = select(ContractRow.contract_id, ContractRow.max_concurrent_requests).limit(MAX_LIMITS)
        async with self._database.read() as session:
            limits = {row.contract_id: row.max_concurrent_requests for row in await session.execute(query)}
        if changes != self._changes:
            return  # what was read may be older than a change: the next round has it
        if len(limits) < MAX_LIMITS:
            limits = dict.fromkeys(self._known) | limits
        for contract_id, limit in limits.items():
            self._keep(contract_id, limit)

    async def _read(self, contract_id: str) -> int | None:
        changes = self._changes
        query = select(ContractRow.max_concurrent_requests).where(ContractRow.contract_id == contract_id)
        async with self._database.read() as session:
            limit = (await session.scalars(query)).first()
        # A change that was committed while we read must not be hidden by what we read before it.
        if changes == self._changes:
            self._keep(contract_id, limit)
        return limit

    def _keep(self, contract_id: str, limit: int | None) -> None:
        self._known.pop(contract_id, None)
        if len(self._known) >= MAX_LIMITS:
            del self._known[next(iter(self._known))]
        self._known[contract_id] = (limit, self._monotonic() + LIMIT_SECONDS)

    def forget(self, contract_id: str) -> None:
        """Read the limit anew: it has changed."""
        self._changes += 1
        self._known.pop(contract_id, None)


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
