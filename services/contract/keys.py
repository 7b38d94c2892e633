"""Keys: signed tokens for programs. Made here, signed by the gateway, recorded without the token, ended by revocation.

Invariant: a key never carries more than its maker may, and a token whose key is not recorded is never given out. What it may do is decided
whenever it is used, by what its owner may do then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import and_, or_, select

from llamesh.kit.channels import DEADLINE, asking, forwarded_metadata
from llamesh.kit.database import Database, is_unavailable
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.identity import KEY_PREFIX, Identity
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from llamesh.kit.reflector import LISTED_FOR
from llamesh.kit.rights import ADMIN, Rights
from llamesh.v1 import contract_pb2, gateway_pb2, gateway_pb2_grpc
from services.contract.contracts import Contracts
from services.contract.grants import Terms, key_scopes
from services.contract.tables import Clock, KeyRow, NewId, Owner

DEFAULT_DAYS = 90
RESYNC_SECONDS = 1.0
"""How often revocations made by another replica of this service are looked for. Its own are seen at once."""
AWAY_SECONDS = 1.0
"""How soon revocations are looked for again if the database did not answer."""
LATE = timedelta(seconds=60)
"""How much later than its time a revocation may be seen: longer than a transaction lasts, and than clocks of replicas differ."""
BATCH = 1000
"""Ids in one message of a watch."""

_ORDER = (KeyRow.create_time, KeyRow.key_id)


class Keys:
    """The keys in SQL. `resync_seconds` None: no other process shares them."""

    def __init__(
        self,
        database: Database,
        contracts: Contracts,
        signer: gateway_pb2_grpc.SigningKeyServiceAsyncStub,
        clock: Clock,
        new_id: NewId,
        resync_seconds: float | None = RESYNC_SECONDS,
    ) -> None:
        self._database = database
        self._contracts = contracts
        self._signer = signer
        self._clock = clock
        self._new_id = new_id
        self._resync_seconds = resync_seconds
        self._revoked: list[str] = []
        """In the order in which they became known; each watcher has told them up to some place."""
        self._known: set[str] = set()
        self._announced = asyncio.Event()
        self._looked: datetime | None = None
        self._listed: datetime | None = None
        """When all of them were read. A later list replaces this one, and its watches end."""
        self._stale = False
        """Whether a key may have been revoked here since the last look."""
        self._turn = asyncio.Lock()

    async def create(
        self, maker: Identity, display_name: str, scopes: Sequence[str], contract_id: str, expire_days: int
    ) -> tuple[KeyRow, str]:
        """Make a key and its token. No contract named: the maker's own.

        Raises SCOPE_MISSING where the maker may not do what is asked, CONTRACT_NOT_FOUND.
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
            expire_time=now + timedelta(days=expire_days or DEFAULT_DAYS),
            revoke_time=None,
        )
        with asking("gateway"):
            signed = await self._signer.SignToken(
                gateway_pb2.SignTokenRequest(
                    subject=maker.subject,
                    lifetime_seconds=int((row.expire_time - now).total_seconds()),
                    token_id=row.key_id,
                    scopes=granted,
                    contract_id=terms.contract_id,
                    uid=maker.uid,
                ),
                timeout=DEADLINE,
                metadata=forwarded_metadata(),
                wait_for_ready=True,
            )
        async with self._database.begin() as session:
            await self._contracts.hold(session, terms.contract_id)
            session.add(row)
        return row, signed.token

    async def page(self, owner: Owner | None, asked: PageQuery) -> tuple[Sequence[KeyRow], str]:
        """A page by create time and id, and the token of the next. `owner` None: everyone's."""
        page = asked.of(Listing(f"keys {owner!r}", BY_TIME))
        query = select(KeyRow)
        if owner is not None:
            earlier = and_(KeyRow.owner_uid == "", KeyRow.owner == owner.name, KeyRow.create_time >= owner.since)
            query = query.where(or_(KeyRow.owner_uid == owner.uid, earlier))
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(query, _ORDER))).all()
        return page.cut(rows, lambda row: (row.create_time, row.key_id))

    async def revoke(self, owner: Owner | None, key_id: str) -> KeyRow:
        """End a key; again changes nothing. KEY_NOT_FOUND also where it is another's. `owner` None: anyone's."""
        try:
            async with self._database.begin() as session:
                row = await session.get(KeyRow, key_id, with_for_update=True)
                if row is None or not (owner is None or _is_of(row, owner)):
                    raise MeshError(Reason.ERROR_REASON_KEY_NOT_FOUND, f"there is no key {key_id}", {"keyId": key_id})
                if row.revoke_time is None:
                    row.revoke_time = self._clock()
        finally:
            # Also if the caller left, or the answer to the commit was lost: the transaction may have happened.
            self._stale = True
            self._announce()
        return row

    async def watch_revocations(self) -> AsyncIterator[list[str]]:
        """Ids that are revoked and not yet expired, in lists; an empty list once all earlier ones are out; then each further one.

        Ends once the list is as old as `LISTED_FOR`: a new watch is told it without what has expired.
        """
        told = 0
        synced = False
        listed: datetime | None = None
        while True:
            # The event that will announce the next revocation is taken before looking, so that none falls in between.
            announced = self._announced
            try:
                await self._look()
            except MeshError as error:
                # What was told stays in force; what was revoked meanwhile elsewhere is told when the database is back.
                if not synced or not is_unavailable(error):
                    raise
                await asyncio.sleep(AWAY_SECONDS)
                continue
            if synced and self._listed != listed:
                return
            listed = self._listed
            while told < len(self._revoked):
                told, ids = told + BATCH, self._revoked[told : told + BATCH]
                yield ids
            told = len(self._revoked)
            if not synced:
                synced = True
                yield []
            try:
                async with asyncio.timeout(self._resync_seconds or LISTED_FOR.total_seconds()):
                    await announced.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        """Read what was revoked since the last look; this costs the same however many keys are revoked."""
        async with self._turn:
            now = self._clock()
            old = self._listed is None or now - self._listed >= LISTED_FOR
            if not old and not self._stale and self._resync_seconds is None:
                return  # nobody else revokes keys here
            self._stale = False
            query = select(KeyRow.key_id).where(KeyRow.revoke_time.is_not(None), KeyRow.expire_time > now)
            if self._looked and not old:
                query = query.where(KeyRow.revoke_time > self._looked - LATE)
            try:
                async with self._database.read() as session:
                    revoked = (await session.scalars(query.order_by(KeyRow.revoke_time, KeyRow.key_id))).all()
            except BaseException:
                self._stale = True
                raise
            if old:
                self._listed, self._known, self._revoked = now, set(), []
            self._note(revoked)
            self._looked = now

    def _note(self, key_ids: Sequence[str]) -> None:
        fresh = [key_id for key_id in key_ids if key_id not in self._known]
        if fresh:
            self._known.update(fresh)
            self._revoked += fresh
            self._announce()

    def _announce(self) -> None:
        announced, self._announced = self._announced, asyncio.Event()
        announced.set()

    async def _terms(self, maker: Identity, contract_id: str) -> Terms:
        # The maker's present contract, whatever its token says.
        wanted = contract_id or maker.contract_id
        if wanted != maker.contract_id and not maker.is_admin:
            raise MeshError(
                Reason.ERROR_REASON_SCOPE_MISSING,
                "only administrators make keys that carry another contract than their own",
                {"scope": ADMIN},
            )
        return await self._contracts.terms(wanted)


def key_state(rights: Rights, row: KeyRow, now: datetime) -> contract_pb2.KeyState.ValueType:
    """Whether a key works, or the first reason why it does not."""
    if row.revoke_time is not None:
        return contract_pb2.KEY_STATE_REVOKED
    if row.expire_time <= now:
        return contract_pb2.KEY_STATE_EXPIRED
    owner = rights.owner(row.owner_uid, row.owner, row.create_time.timestamp())
    if owner is None:
        return contract_pb2.KEY_STATE_OWNER_REMOVED
    return contract_pb2.KEY_STATE_OWNER_DISABLED if owner.disabled else contract_pb2.KEY_STATE_WORKS


def is_owned(rights: Rights, row: KeyRow) -> bool:
    """Whether the owner of a key is there: without it the key does not count, though it is neither revoked nor expired."""
    return rights.owner(row.owner_uid, row.owner, row.create_time.timestamp()) is not None


def _is_of(row: KeyRow, owner: Owner) -> bool:
    if row.owner_uid:
        return row.owner_uid == owner.uid
    return row.owner == owner.name and row.create_time >= owner.since
