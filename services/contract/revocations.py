"""Streams the revoked keys to the members that check tokens: to the controller for Envoy, and to public services for their own calls.

`Keys.revoke` commits a revocation and calls `announce`. Every open watch then reads the table again and sends the new ids. With PostgreSQL,
other replicas of this service revoke keys too, so the watches also read at an interval. All watches share one list of ids under one lock:
a revocation costs one query, independent of the number of watches.

Invariant: a watch sends each id once. It sends revocations of this process at once, and those of other replicas within `RESYNC_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from llamesh.kit.change_feed import ChangeFeed
from llamesh.kit.database import Database
from llamesh.kit.reflector import LISTED_FOR
from services.contract.tables import Clock, KeyRow

RESYNC_SECONDS = 1.0
"""Interval at which revocations by other replicas of this service are read."""
MAX_DELAY = timedelta(seconds=60)
"""Longest delay between a revocation's timestamp and its visibility: longer than a transaction and the clock skew of replicas."""
MAX_BATCH = 1000
"""Maximum number of ids in one message of a watch."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """All revoked keys that have not expired."""

    since: datetime
    """When the list was started. A later list replaces this one and ends its watches."""
    key_ids: Sequence[str]
    """Ids in the order in which they became known. The list only grows, so a watch is a position in it."""


class Revocations:
    """The revoked keys of one database. `resync_seconds` None: no other process revokes keys in it."""

    def __init__(self, database: Database, clock: Clock, resync_seconds: float | None = RESYNC_SECONDS) -> None:
        self._database = database
        self._clock = clock
        self._shared = resync_seconds is not None
        self._feed = ChangeFeed(self._read, resync_seconds)
        self._listed: _Listed | None = None
        self._known: set[str] = set()
        self._key_ids: list[str] = []
        self._read_at: datetime | None = None
        self._stale = False
        """Whether a key may have been revoked here since the last read."""
        self._lock = asyncio.Lock()

    def announce(self) -> None:
        """Make every watch read again: a key may have been revoked."""
        self._stale = True
        self._feed.announce()

    async def watch(self) -> AsyncIterator[list[str]]:
        """Yield the ids that are revoked and not expired, in lists; an empty list after the last of them; then each further id.

        Ends when the list is as old as `LISTED_FOR`: a new watch gets a list without the keys that have expired.
        """
        sent = 0
        since: datetime | None = None
        async for listed in self._feed.states():
            if since not in (None, listed.since):
                return
            while sent < len(listed.key_ids):
                sent, batch = sent + MAX_BATCH, list(listed.key_ids[sent : sent + MAX_BATCH])
                yield batch
            sent = len(listed.key_ids)
            if since is None:
                since = listed.since
                yield []

    async def _read(self) -> _Listed:
        """Read the revocations since the last read. The cost does not depend on the number of earlier revocations."""
        async with self._lock:
            now = self._clock()
            listed = self._listed
            if listed is not None and now - listed.since >= LISTED_FOR:
                listed = None
            if listed is not None and not self._stale and not self._shared:
                return listed
            self._stale = False
            query = select(KeyRow.key_id).where(KeyRow.revoke_time.is_not(None), KeyRow.expire_time > now)
            if self._read_at and listed is not None:
                query = query.where(KeyRow.revoke_time > self._read_at - MAX_DELAY)
            try:
                async with self._database.read() as session:
                    revoked = (await session.scalars(query.order_by(KeyRow.revoke_time, KeyRow.key_id))).all()
            except BaseException:
                self._stale = True
                raise
            if listed is None:
                self._known, self._key_ids = set(), []
                listed = self._listed = _Listed(now, self._key_ids)
            new = [key_id for key_id in revoked if key_id not in self._known]
            if new:
                self._known.update(new)
                self._key_ids += new
                self._feed.announce()
            self._read_at = now
            return listed
