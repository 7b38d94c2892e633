"""Contracts in SQL: the limits of the users and keys that have them.

Invariant: a contract of a user or of a working key cannot be deleted, even if it is assigned during the deletion. The cache of terms is
invalidated after each change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.completion import to_completion
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from services.contract.grants import ANY_MODEL, Terms
from services.contract.tables import Clock, ContractRow, KeyRow, NewId
from services.contract.terms_cache import TermsCache, terms_of

MAX_REMOVAL_TIME = timedelta(seconds=60)
"""Longest duration of a deletion; a longer one is given up. The gateway needs less time to count the users of a contract."""

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
        key_owner: Callable[[KeyRow], object],
    ) -> None:
        """`users_of` returns how many users have a contract; `key_owner` returns the owner of a key, or None."""
        self._users_of = users_of
        self._owner_of = key_owner
        self._database = database
        self._clock = clock
        self._new_id = new_id
        self._cache = cache

    async def create(self, display_name: str, max_concurrent_requests: int, models: Sequence[str]) -> ContractRow:
        """Create a contract. Without models it grants all models."""
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
        self._cache.invalidate(row.contract_id, terms_of(row))
        return row

    async def page(self, page_query: PageQuery, only: str | None = None) -> tuple[Sequence[ContractRow], str]:
        """Return a page by creation time and id, and the token of the next page. `only`: the id of the contract to return; None for all."""
        page = page_query.of(_LISTING)
        query = select(ContractRow) if only is None else select(ContractRow).where(ContractRow.contract_id == only)
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(query, _ORDER))).all()
        return page.cut(rows, lambda row: (row.create_time, row.contract_id))

    async def get(self, contract_id: str) -> ContractRow:
        """Return a contract. Raises CONTRACT_NOT_FOUND also during its deletion, so that the gateway assigns it to no user meanwhile."""
        async with self._database.read() as session:
            row = await _found(session, contract_id)
        if row.removing_until is not None and row.removing_until > self._clock():
            raise not_found(contract_id)
        return row

    async def hold(self, session: AsyncSession, contract_id: str) -> None:
        """Lock a contract against deletion until the transaction ends. Raises CONTRACT_NOT_FOUND."""
        if contract_id:
            await _found(session, contract_id, lock=True)

    async def terms(self, contract_id: str) -> Terms:
        """Return the terms of a contract; an empty id means no contract, which limits nothing. Raises CONTRACT_NOT_FOUND."""
        if not contract_id:
            return Terms()
        async with self._database.read() as session:
            return terms_of(await _found(session, contract_id))

    async def update(
        self, contract_id: str, display_name: str | None, max_concurrent_requests: int | None, models: Sequence[str]
    ) -> ContractRow:
        """Change the given fields. Raises CONTRACT_NOT_FOUND."""
        async with self._database.begin() as session:
            row = await _found(session, contract_id, lock=True)
            if display_name is not None:
                row.display_name = display_name
            if max_concurrent_requests is not None:
                row.max_concurrent_requests = max_concurrent_requests
            if models:
                row.models = _distinct(models)
            row.update_time = self._clock()
        self._cache.invalidate(contract_id, terms_of(row))
        return row

    async def delete(self, contract_id: str) -> ContractRow:
        """Delete a contract. Raises CONTRACT_NOT_FOUND, or CONTRACT_IN_USE while a user or a working key has it.

        If several calls delete one contract at the same time, the last call goes on and the others get COMPONENT_UNAVAILABLE.

        The contract is marked first, so that the gateway assigns it to no user from then on. Then the gateway counts its users, among them
        those that got it before the mark. A new key locks the contract in its own transaction (`hold`).
        """
        until = await self._mark(contract_id, self._clock() + MAX_REMOVAL_TIME)
        try:
            return await self._remove(contract_id, until)
        except BaseException:
            with suppress(MeshError):  # the mark expires by itself
                await to_completion(self._unmark(contract_id, until))
            raise

    async def _mark(self, contract_id: str, least: datetime) -> datetime:
        """Mark the contract and return the mark. Marks of concurrent calls differ, so that each call removes only its own mark."""
        async with self._database.begin() as session:
            row = await _found(session, contract_id, lock=True)
            if row.removing_until is not None:
                least = max(least, row.removing_until + timedelta(microseconds=1))
            row.removing_until = least
        return least

    async def _unmark(self, contract_id: str, mark: datetime) -> None:
        """Remove the mark unless another call has replaced it."""
        async with self._database.begin() as session:
            row = await _found(session, contract_id, lock=True)
            if row.removing_until == mark:
                row.removing_until = None

    async def _remove(self, contract_id: str, until: datetime) -> ContractRow:
        users = await self._users_of(contract_id)
        async with self._database.begin() as session:
            row = await _found(session, contract_id, lock=True)
            if row.removing_until != until or until <= self._clock():
                raise MeshError(
                    Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
                    f"another call deletes the contract {contract_id}, or the gateway took too long",
                    {"component": "contract"},
                    retry_after=1,
                )
            query = select(KeyRow).where(
                KeyRow.contract_id == contract_id, KeyRow.revoke_time.is_(None), KeyRow.expire_time > self._clock()
            )
            keys = sum([self._owner_of(key) is not None for key in await session.scalars(query)])
            if users or keys:
                raise MeshError(
                    Reason.ERROR_REASON_CONTRACT_IN_USE,
                    f"the contract {contract_id} is in use: users {users}, keys {keys}",
                    {"contractId": contract_id, "users": users, "keys": keys},
                )
            await session.delete(row)
        self._cache.invalidate(contract_id)
        return row


async def _found(session: AsyncSession, contract_id: str, *, lock: bool = False) -> ContractRow:
    row = await session.get(ContractRow, contract_id, with_for_update=lock or None)
    if row is None:
        raise not_found(contract_id)
    return row


def not_found(contract_id: str) -> MeshError:
    """Return the error for a contract that does not exist."""
    return MeshError(
        Reason.ERROR_REASON_CONTRACT_NOT_FOUND, f"there is no contract {contract_id}", {"contractId": contract_id}
    )


def _distinct(models: Sequence[str]) -> list[str]:
    return [ANY_MODEL] if not models or ANY_MODEL in models else list(dict.fromkeys(models))
