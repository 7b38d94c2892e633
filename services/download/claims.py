"""The claims of processes on the transfers that they work on, and whether other processes may wait for these.

A claim is renewed every RENEW_SECONDS, and the renewal says whether others of the same source may wait for the transfer (`source_holds`).
Invariant: another process may take over a claim that is not renewed for LEASE_SECONDS, and waits for no transfer any longer than its claim
lasts. Transfers begin one after the other in all processes (`lock_begins`), so the second of a source sees the first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Update, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.leases import LEASE_SECONDS, moment
from services.download.slots import holders
from services.download.tables import ACTIVE, TransferRow


class Claims:
    """The claims in the transfer table. `owner_id` identifies this process among those that share it."""

    def __init__(self, database: Database, owner_id: str) -> None:
        self._database = database
        self.owner_id = owner_id

    @property
    def shared(self) -> bool:
        """Whether other processes may work on the same tables."""
        return bool(self._database.schema)

    def free(self, row: TransferRow) -> bool:
        """Return whether no other process has the claim, not even one that has expired."""
        return row.claimed_by in ("", self.owner_id)

    def workable(self) -> Sequence[ColumnElement[bool]]:
        """Return the conditions for an active transfer that this process runs or may claim."""
        expired = TransferRow.claim_expires < moment(self._database)
        return TransferRow.state.in_(ACTIVE), or_(TransferRow.claimed_by.in_(("", self.owner_id)), expired)

    async def take(self, session: AsyncSession, row: TransferRow) -> None:
        """Claim a locked row. Others of its source may wait for it until a renewal says otherwise."""
        row.claimed_by = self.owner_id
        row.claim_expires = await session.scalar(select(moment(self._database, LEASE_SECONDS)))
        row.holds = True

    async def renew(self, holding: Collection[str]) -> None:
        """Extend the claims of this process. `holding` are the models for whose transfers others may wait from now on."""
        expires, holds = moment(self._database, LEASE_SECONDS), TransferRow.model_uuid.in_(holding)
        await self._write(self._own.values(claim_expires=expires, holds=holds))

    async def release(self) -> None:
        """Release the claims of this process, so that another or the next process starts the transfers again at once."""
        await self._write(self._own.values(claimed_by="", claim_expires=None, holds=False))

    async def held_elsewhere(self) -> Sequence[TransferRow]:
        """Return the transfers of other processes for which those of their sources may wait."""
        if not self.shared:
            return ()
        async with self._database.read() as session:
            return (await session.scalars(select(TransferRow).where(*self._elsewhere()))).all()

    async def lock_begins(self, session: AsyncSession) -> None:
        """Make transactions in which transfers begin run one at a time. It is taken before the lock of a row."""
        await self._database.lock(session, "begins of transfers")

    async def must_wait(self, session: AsyncSession, row: TransferRow) -> bool:
        """Return whether a transfer must wait for one of its source that another process runs."""
        if not self.shared:
            return False
        same = select(TransferRow).where(*self._elsewhere(), TransferRow.source == row.source)
        return bool(holders([row], (), (), (await session.scalars(same)).all()))

    def _elsewhere(self) -> Sequence[ColumnElement[bool]]:
        others = TransferRow.claimed_by.not_in(("", self.owner_id))
        lasts = TransferRow.claim_expires >= moment(self._database)
        return TransferRow.state.in_(ACTIVE), others, lasts, TransferRow.holds.is_(True)

    @property
    def _own(self) -> Update:
        return update(TransferRow).where(TransferRow.state.in_(ACTIVE), TransferRow.claimed_by == self.owner_id)

    async def _write(self, statement: Update) -> None:
        async with self._database.begin() as session:
            await session.execute(statement, execution_options={"synchronize_session": False})
