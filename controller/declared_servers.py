"""The store of declared servers on one machine: rows of one table, and a cache in memory that serves all reads.

Invariant: decisions that are not yet written stay in effect when rows are read again. See `controller.declared_store`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from controller.declared import Declaration, DeclaredServer, EngineMemory, RunState, check_repeated, not_found
from controller.declared_rows import ServerRow, declared_server, spec_json
from controller.declared_store import DeclaredStore
from llamesh.kit.clock import utc_now
from llamesh.kit.database import Database
from llamesh.kit.spec_changes import apply_changes, check_etag
from llamesh.v1.server_pb2 import ServerChanges


async def _unguarded(_: AsyncSession) -> None:
    """Allow every write: no other process writes to this database."""


class DeclaredServers(DeclaredStore):
    """Store of declared servers. Tests replace `clock` and `new_id` to make times and ids deterministic.

    `guard` is called in every writing transaction. It raises if this process may no longer write (`Lease.guard`).
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        guard: Callable[[AsyncSession], Awaitable[None]] = _unguarded,
    ) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id
        self._guard = guard
        self._known: dict[str, DeclaredServer] | None = None
        """The cache; None until the rows have been read for the first time."""
        self._changes = 0
        self._unwritten: dict[str, RunState] = {}
        """Run states that the controller has decided and not written yet."""
        self._decided = asyncio.Event()
        self._writing = asyncio.Lock()

    async def refresh(self) -> None:
        """Read all rows again. Decisions that are not yet written stay in effect."""
        changes = self._changes
        async with self._database.read() as session:
            rows = (await session.execute(select(ServerRow))).scalars().all()
        if self._known is not None and changes != self._changes:
            return  # A change was made during the read, so these rows may be older than the cache.
        self._known = {}
        for row in rows:
            self._cache_row(row)

    async def declare(self, wanted: Declaration) -> DeclaredServer:
        """See DeclaredStore."""
        now = self._clock()
        row = ServerRow(
            server_uuid=self._new_id(),
            model_uuid=wanted.spec.model_uuid,
            spec=spec_json(wanted.spec),
            generation=1,
            owner=wanted.owner,
            requester=wanted.requester,
            request_id=wanted.request_id or None,
            request_digest=wanted.request_digest,
            engine_memory_bytes=wanted.memory.total_bytes,
            shared_weights_bytes=wanted.memory.shared_bytes,
            run_state=RunState.AWAKE,
            removing=False,
            create_time=now,
            update_time=now,
        )
        try:
            async with self._database.begin() as session:
                await self._guard(session)
                session.add(row)
        except IntegrityError:
            async with self._database.read() as session:
                same = (ServerRow.requester == wanted.requester) & (ServerRow.request_id == wanted.request_id)
                first = (await session.execute(select(ServerRow).where(same))).scalar_one_or_none()
            if first is None:
                raise
            row = first
        self._changes += 1
        return check_repeated(self._cache_row(row), wanted.request_digest)

    async def change(self, server_uuid: str, changes: ServerChanges, etag: str, memory: EngineMemory) -> DeclaredServer:
        """See DeclaredStore."""
        while True:
            present = await self.get(server_uuid)
            if present.removing:
                raise not_found(server_uuid)
            check_etag(present.etag, etag)
            spec = apply_changes(present.spec, changes)
            before = EngineMemory(present.engine_memory_bytes, present.shared_weights_bytes)
            after = memory if memory.total_bytes else before
            if spec == present.spec and after == before:
                return present
            values = {
                "spec": spec_json(spec),
                "generation": present.generation + 1,
                "engine_memory_bytes": after.total_bytes,
                "shared_weights_bytes": after.shared_bytes,
                "update_time": self._clock(),
            }
            if changed := await self._update(server_uuid, ServerRow.generation == present.generation, values):
                return changed
            # Another process changed it in the database.
            await self.refresh()

    async def set_run_state(self, server_uuid: str, run_state: RunState) -> bool:
        """See DeclaredStore."""
        async with self._writing:
            after = await self._update(
                server_uuid, ServerRow.run_state != run_state, {"run_state": run_state, "update_time": self._clock()}
            )
            self._unwritten.pop(server_uuid, None)
            self._override(server_uuid, run_state)
        return after is not None

    def decide_run_state(self, server_uuid: str, run_state: RunState, only_from: RunState | None = None) -> bool:
        """See DeclaredStore."""
        present = (self._known or {}).get(server_uuid)
        if present is None or present.run_state is run_state or only_from not in (None, present.run_state):
            return False
        self._unwritten[server_uuid] = run_state
        self._override(server_uuid, run_state)
        self._decided.set()
        return True

    async def write_decided(self) -> None:
        """See DeclaredStore."""
        await self._decided.wait()
        for server_uuid in list(self._unwritten):
            async with self._writing:
                run_state = self._unwritten.get(server_uuid)
                if run_state is None:
                    continue
                values = {"run_state": run_state, "update_time": self._clock()}
                await self._update(server_uuid, ServerRow.run_state != run_state, values)
                if self._unwritten.get(server_uuid) is run_state:
                    del self._unwritten[server_uuid]
        if not self._unwritten:
            self._decided.clear()

    async def begin_removal(self, server_uuid: str, etag: str = "") -> None:
        """See DeclaredStore."""
        while True:
            present = await self.get(server_uuid)
            check_etag(present.etag, etag)
            as_read = [~ServerRow.removing, *([ServerRow.generation == present.generation] if etag else [])]
            values = {"removing": True, "update_time": self._clock()}
            if await self._update(server_uuid, and_(*as_read), values) or present.removing:
                return
            # Another process changed it in the database.
            await self.refresh()

    async def forget(self, server_uuid: str) -> None:
        """Delete the row."""
        async with self._database.begin() as session:
            await self._guard(session)
            await session.execute(delete(ServerRow).where(ServerRow.server_uuid == server_uuid))
        self._changes += 1
        self._unwritten.pop(server_uuid, None)
        if self._known is not None:
            self._known.pop(server_uuid, None)

    async def _update(
        self, server_uuid: str, present: ColumnElement[bool], values: dict[str, object]
    ) -> DeclaredServer | None:
        """Change a row if it still equals `present`. Returns None if it does not."""
        statement = update(ServerRow).where(ServerRow.server_uuid == server_uuid, present).values(values)
        async with self._database.begin() as session:
            await self._guard(session)
            row = (await session.execute(statement.returning(ServerRow))).scalar_one_or_none()
        if row is None:
            return None
        self._changes += 1
        return self._cache_row(row)

    async def _present(self) -> Mapping[str, DeclaredServer]:
        if self._known is None:
            await self.refresh()
        return self._known or {}

    def _cache_row(self, row: ServerRow) -> DeclaredServer:
        """Put a row into the cache, with the run state that was decided since the row was read."""
        declared = declared_server(row)
        if (run_state := self._unwritten.get(row.server_uuid)) is not None:
            declared = replace(declared, run_state=run_state)
        if self._known is not None:
            self._known[row.server_uuid] = declared
        return declared

    def _override(self, server_uuid: str, run_state: RunState) -> None:
        if self._known is not None and server_uuid in self._known:
            self._changes += 1
            self._known[server_uuid] = replace(self._known[server_uuid], run_state=run_state)
