"""Keys: signed tokens for programs. Made here, signed by the gateway, recorded without the token, ended by revocation.

Invariant: a key never carries more than its maker may, and a token whose key is not recorded is never given out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

from sqlalchemy import select

from llamesh.kit.channels import DEADLINE, asking, passed_on
from llamesh.kit.database import Database, is_unavailable
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.identity import Identity
from llamesh.kit.pages import BY_TIME, Asked, Listing
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from services.contract.contracts import Contracts
from services.contract.grants import ADMIN, Terms, key_scopes
from services.contract.tables import Clock, KeyRow, NewId

DEFAULT_DAYS = 90
RESYNC_SECONDS = 1.0
"""How often revocations made by another replica of this service are looked for. Its own are seen at once."""
AWAY_SECONDS = 1.0
"""How soon revocations are looked for again if the database did not answer."""
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
        self._revoked = asyncio.Event()

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
            key_id=self._new_id("key_"),
            display_name=display_name,
            owner=maker.subject,
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
                    ask=terms.ask,
                ),
                timeout=DEADLINE,
                metadata=passed_on(),
                wait_for_ready=True,
            )
        async with self._database.begin() as session:
            session.add(row)
        return row, signed.token

    async def page(self, owner: str | None, asked: Asked) -> tuple[Sequence[KeyRow], str]:
        """A page by create time and id, and the token of the next. `owner` None: everyone's."""
        page = asked.of(Listing(f"keys {owner!r}", BY_TIME))
        query = select(KeyRow)
        if owner is not None:
            query = query.where(KeyRow.owner == owner)
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(query, _ORDER))).all()
        return page.cut(rows, lambda row: (row.create_time, row.key_id))

    async def revoke(self, owner: str | None, key_id: str) -> KeyRow:
        """End a key; again changes nothing. KEY_NOT_FOUND also where it is another's. `owner` None: anyone's."""
        async with self._database.begin() as session:
            row = await session.get(KeyRow, key_id, with_for_update=True)
            if row is None or owner not in (None, row.owner):
                raise MeshError(Reason.ERROR_REASON_KEY_NOT_FOUND, f"there is no key {key_id}", {"keyId": key_id})
            if row.revoke_time is None:
                row.revoke_time = self._clock()
        self._revoked.set()
        return row

    async def revocations(self) -> AsyncIterator[list[str]]:
        """Ids that are revoked and not yet expired, in lists; an empty list once all earlier ones are out; then each further one."""
        sent: set[str] = set()
        synced = False
        while True:
            # The event that will announce the next revocation is taken before looking, so that none falls in between.
            if self._revoked.is_set():
                self._revoked = asyncio.Event()
            announced = self._revoked
            try:
                now_revoked = await self._revoked_ids()
            except MeshError as error:
                # What was told stays in force; what was revoked meanwhile elsewhere is told when the database is back.
                if not synced or not is_unavailable(error):
                    raise
                await asyncio.sleep(AWAY_SECONDS)
                continue
            fresh = [key_id for key_id in now_revoked if key_id not in sent]
            for start in range(0, len(fresh), BATCH):
                yield fresh[start : start + BATCH]
            sent = set(now_revoked)
            if not synced:
                synced = True
                yield []
            try:
                async with asyncio.timeout(self._resync_seconds):
                    await announced.wait()
            except TimeoutError:
                continue

    async def _revoked_ids(self) -> Sequence[str]:
        query = select(KeyRow.key_id).where(KeyRow.revoke_time.is_not(None), KeyRow.expire_time > self._clock())
        async with self._database.read() as session:
            return (await session.scalars(query.order_by(KeyRow.revoke_time, KeyRow.key_id))).all()

    async def _terms(self, maker: Identity, contract_id: str) -> Terms:
        wanted = contract_id or maker.contract_id
        if wanted != maker.contract_id and not maker.is_admin:
            raise MeshError(
                Reason.ERROR_REASON_SCOPE_MISSING,
                "only administrators make keys that carry another contract than their own",
                {"scope": ADMIN},
            )
        return await self._contracts.terms(wanted)
