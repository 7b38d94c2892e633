"""Keys: signed tokens for programs. This service makes and records them, the gateway signs them, a revocation ends them.

Invariant: a key never has more scopes than its maker, and a token is returned only after its key is recorded. The token itself is not
stored. Each use of a key is decided by its owner's rights at that time. A key that was made with a key ends with it: not later, and it is
revoked with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from llamesh.kit.channels import asking, call_options
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason, invalid_field
from llamesh.kit.identity import KEY_PREFIX, Identity
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from llamesh.kit.rights import ADMIN, Rights
from llamesh.kit.standings import UserRights
from llamesh.v1 import contract_pb2, gateway_pb2, gateway_pb2_grpc
from services.contract.contracts import Contracts
from services.contract.grants import Terms, key_scopes
from services.contract.revocations import Revocations
from services.contract.tables import Clock, KeyRow, NewId, RowOwner

DEFAULT_DAYS = 90
KEPT_AFTER_EXPIRY = timedelta(days=30)
"""How long an expired key is listed. It must exceed the differences between the clocks of the processes that check tokens: a revocation
holds only while the key is recorded."""

_ORDER = (KeyRow.create_time, KeyRow.key_id)


class Keys:
    """The keys in SQL."""

    def __init__(
        self,
        database: Database,
        contracts: Contracts,
        revocations: Revocations,
        signer: gateway_pb2_grpc.SigningKeyServiceAsyncStub,
        rights: Rights,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._database = database
        self._contracts = contracts
        self._revocations = revocations
        self._signer = signer
        self._rights = rights
        self._clock = clock
        self._new_id = new_id

    async def create(
        self, maker: Identity, display_name: str, scopes: Sequence[str], contract_id: str, expire_days: int
    ) -> tuple[KeyRow, str]:
        """Make a key and its token. Without `contract_id` the key has the maker's own contract.

        Raises SCOPE_MISSING if the maker may not grant the requested scopes, CONTRACT_NOT_FOUND, INVALID_FIELD if the key that makes it
        ends earlier, and UNAUTHENTICATED if that key has ended.
        """
        terms = await self._terms(maker, contract_id)
        granted = key_scopes(scopes, maker.scopes, terms)
        now = self._clock()
        row = KeyRow(
            key_id=self._new_id(KEY_PREFIX),
            display_name=display_name,
            owner=maker.subject,
            owner_uid=maker.uid,
            contract_id=terms.contract_id,
            scopes=granted,
            create_time=now,
            expire_time=_expire_time(maker, expire_days, now),
            revoke_time=None,
            made_by=maker.token_id if maker.is_key else None,
        )
        request = gateway_pb2.SignTokenRequest(
            subject=maker.subject,
            lifetime_seconds=int((row.expire_time - now).total_seconds()),
            token_id=row.key_id,
            scopes=granted,
            contract_id=terms.contract_id,
            uid=maker.uid,
        )
        with asking("gateway"):
            signed = await self._signer.SignToken(request, **call_options())
        async with self._database.begin() as session:
            await self._contracts.hold(session, terms.contract_id)
            if row.made_by is not None:
                await _hold_maker(session, row.made_by)
            session.add(row)
        return row, signed.token

    async def page(self, owner: RowOwner | None, page_query: PageQuery) -> tuple[Sequence[KeyRow], str]:
        """Return a page by creation time and id, and the token of the next page. `owner` None: the keys of all users."""
        page = page_query.of(Listing(f"keys {owner!r}", BY_TIME))
        query = select(KeyRow)
        if owner is not None:
            earlier = and_(KeyRow.owner_uid == "", KeyRow.owner == owner.name, KeyRow.create_time >= owner.since)
            query = query.where(or_(KeyRow.owner_uid == owner.uid, earlier))
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(query, _ORDER))).all()
        return page.cut(rows, lambda row: (row.create_time, row.key_id))

    async def revoke(self, owner: RowOwner | None, key_id: str) -> KeyRow:
        """Revoke a key, and all keys that were made with it; idempotent. `owner` None: any user's key.

        Raises KEY_NOT_FOUND also if the key belongs to another user.
        """
        try:
            async with self._database.begin() as session:
                row = await session.get(KeyRow, key_id, with_for_update=True)
                if row is None or not (owner is None or _is_of(row, owner)):
                    raise MeshError(Reason.ERROR_REASON_KEY_NOT_FOUND, f"there is no key {key_id}", {"keyId": key_id})
                if row.revoke_time is None:
                    row.revoke_time = self._clock()
                    await _revoke_made_by_revoked(session, row.revoke_time)
        finally:
            # The transaction may be committed although the caller left or the answer to the commit was lost.
            self._revocations.announce()
        return row

    async def prune(self) -> None:
        """Delete the keys that expired long ago. A key that has not expired stays, because its revocation depends on it."""
        async with self._database.begin() as session:
            await session.execute(delete(KeyRow).where(KeyRow.expire_time < self._clock() - KEPT_AFTER_EXPIRY))

    def state(self, row: KeyRow) -> contract_pb2.KeyState.ValueType:
        """Return whether a key works, or the first reason why it does not."""
        if row.revoke_time is not None:
            return contract_pb2.KEY_STATE_REVOKED
        if row.expire_time <= self._clock():
            return contract_pb2.KEY_STATE_EXPIRED
        owner = key_owner(self._rights, row)
        if owner is None:
            return contract_pb2.KEY_STATE_OWNER_REMOVED
        return contract_pb2.KEY_STATE_OWNER_DISABLED if owner.disabled else contract_pb2.KEY_STATE_WORKS

    async def _terms(self, maker: Identity, contract_id: str) -> Terms:
        # `maker` has the user's present contract, even if its token names another one.
        wanted = contract_id or maker.contract_id
        if wanted != maker.contract_id and not maker.is_admin:
            raise MeshError(
                Reason.ERROR_REASON_SCOPE_MISSING,
                "only administrators make keys that carry another contract than their own",
                {"scope": ADMIN},
            )
        return await self._contracts.terms(wanted)


def key_owner(rights: Rights, row: KeyRow) -> UserRights | None:
    """Return the user that a key belongs to. None if the user was removed: then the key does not work, though it is not revoked."""
    return rights.owner(row.owner_uid, row.owner, row.create_time.timestamp())


def _expire_time(maker: Identity, expire_days: int, now: datetime) -> datetime:
    """Return when a new key ends: after the requested days, but not later than the key that makes it. A login limits nothing."""
    wanted = now + timedelta(days=expire_days or DEFAULT_DAYS)
    left = maker.expires - now.timestamp()
    if not maker.is_key or math.isinf(left):
        return wanted
    if left < 1:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "the key has expired")
    most = math.ceil(left / timedelta(days=1).total_seconds())
    if expire_days > most:
        raise invalid_field(
            "expire_days", f"must be at most {most}: the key that makes it ends then. A login makes keys that end later"
        )
    return min(wanted, now + timedelta(seconds=left))


async def _hold_maker(session: AsyncSession, key_id: str) -> None:
    """Lock the key that makes a new key until the transaction ends, so that its revocation either precedes the new key or finds it."""
    maker = await session.get(KeyRow, key_id, with_for_update=True)
    if maker is not None and maker.revoke_time is not None:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "the key was revoked")


async def _revoke_made_by_revoked(session: AsyncSession, now: datetime) -> None:
    """Revoke the keys that were made with revoked keys, then those that were made with these, until there are none."""
    maker = aliased(KeyRow)
    revoked = select(maker.key_id).where(maker.revoke_time.is_not(None))
    made = update(KeyRow).where(KeyRow.revoke_time.is_(None), KeyRow.made_by.in_(revoked))
    while (await session.scalars(made.values(revoke_time=now).returning(KeyRow.key_id))).first() is not None:
        pass


def _is_of(row: KeyRow, owner: RowOwner) -> bool:
    if row.owner_uid:
        return row.owner_uid == owner.uid
    return row.owner == owner.name and row.create_time >= owner.since
