"""The store of declared servers: rows of one table, with a copy in memory from which everything is read.

Because of the copy, servers are kept running while the database is away. What people declare is in the database before it is answered.
What the controller decides by itself (asleep when idle, awake for a request) counts at once and is written when the database is back.

Invariant: decisions that are not written yet stay in force when rows are read again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from controller.declared import DeclaredServer, RunState, check_etag, check_repeated, not_found
from controller.declared_rows import ServerRow, declared_server, spec_json
from controller.model_files import needed_models
from llamesh.kit.clock import utc_now
from llamesh.kit.database import Database
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from llamesh.kit.spec_changes import apply_changes
from llamesh.v1.server_pb2 import ServerChanges, ServerSpec


async def _unguarded(_: AsyncSession) -> None:
    """Nobody else writes."""


class DeclaredServers:
    """The store. `clock` and `new_id` make what is otherwise chance and time.

    `guard` is called in every transaction that writes and raises where this process may not write any more (`Lease.guard`).
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
        """The copy; None until the rows were read once."""
        self._changes = 0
        self._unwritten: dict[str, RunState] = {}
        """Decisions of the controller that are not in the database yet."""
        self._decided = asyncio.Event()
        self._writing = asyncio.Lock()

    async def refresh(self) -> None:
        """Read all rows anew. Decisions that are not written yet stay in force."""
        changes = self._changes
        async with self._database.read() as session:
            rows = (await session.execute(select(ServerRow))).scalars().all()
        if self._known is not None and changes != self._changes:
            return  # a change was made while these rows were read: they may be older
        self._known = {}
        for row in rows:
            self._keep(row)

    async def declare(
        self,
        spec: ServerSpec,
        owner: str,
        request_id: str,
        engine_memory_bytes: int,
        shared_weights_bytes: int = 0,
        request_digest: str = "",
        owner_uid: str = "",
    ) -> DeclaredServer:
        """Declare a server; the first one again where the owner has used the request id before.

        `owner_uid`: the user, whatever its name. REQUEST_ID_REUSED where that was for a request with another digest.
        """
        now = self._clock()
        row = ServerRow(
            server_uuid=self._new_id(),
            model_uuid=spec.model_uuid,
            spec=spec_json(spec),
            generation=1,
            owner=owner,
            requester=owner_uid or owner,
            request_id=request_id or None,
            request_digest=request_digest,
            engine_memory_bytes=engine_memory_bytes,
            shared_weights_bytes=shared_weights_bytes,
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
                wanted = (ServerRow.requester == (owner_uid or owner)) & (ServerRow.request_id == request_id)
                first = (await session.execute(select(ServerRow).where(wanted))).scalar_one_or_none()
            if first is None:
                raise
            row = first
        self._changes += 1
        return check_repeated(self._keep(row), request_digest)

    async def requested(
        self, owner: str, request_id: str, request_digest: str, owner_uid: str = ""
    ) -> DeclaredServer | None:
        """The server that a request has declared before, if it is there; REQUEST_ID_REUSED as in `declare`."""
        wanted = (owner_uid or owner, request_id)
        found = (each for each in (await self._copy()).values() if (each.requester, each.request_id) == wanted)
        first = next(found, None)
        return check_repeated(first, request_digest) if first is not None else None

    async def get(self, server_uuid: str) -> DeclaredServer:
        """Read one; SERVER_NOT_FOUND where there is none."""
        found = await self.find(server_uuid)
        if found is None:
            raise not_found(server_uuid)
        return found

    async def find(self, server_uuid: str) -> DeclaredServer | None:
        """Read one, if there is one."""
        return (await self._copy()).get(server_uuid)

    async def all(self) -> Sequence[DeclaredServer]:
        """All of them, the oldest first."""
        return sorted((await self._copy()).values(), key=_order_key)

    async def page(self, asked: PageQuery, model_uuid: str = "") -> tuple[Sequence[DeclaredServer], str]:
        """One page, by create time and id, and the token of the next."""
        page = asked.of(Listing(f"servers model={model_uuid}", BY_TIME))
        found = [each for each in await self.all() if not model_uuid or model_uuid in needed_models(each.spec)]
        return page.cut([each for each in found if page.after is None or _order_key(each) > page.after], _order_key)

    async def change(
        self,
        server_uuid: str,
        changes: ServerChanges,
        etag: str,
        engine_memory_bytes: int,
        shared_weights_bytes: int = 0,
    ) -> DeclaredServer:
        """Change what is set; SERVER_NOT_FOUND, or ETAG_MISMATCH where it changed since it was read.

        A change that changes nothing leaves the generation alone.
        """
        while True:
            present = await self.get(server_uuid)
            if present.removing:
                raise not_found(server_uuid)
            check_etag(present, etag)
            spec = apply_changes(present.spec, changes)
            before = (present.engine_memory_bytes, present.shared_weights_bytes)
            memory = (engine_memory_bytes, shared_weights_bytes) if engine_memory_bytes else before
            if spec == present.spec and memory == before:
                return present
            values = {
                "spec": spec_json(spec),
                "generation": present.generation + 1,
                "engine_memory_bytes": memory[0],
                "shared_weights_bytes": memory[1],
                "update_time": self._clock(),
            }
            if after := await self._update(server_uuid, ServerRow.generation == present.generation, values):
                return after
            # Someone else changed it in the database.
            await self.refresh()

    async def set_run_state(self, server_uuid: str, run_state: RunState) -> bool:
        """Say, for people, whether the engines are to run: written before it counts. False if it was so already."""
        async with self._writing:
            after = await self._update(
                server_uuid, ServerRow.run_state != run_state, {"run_state": run_state, "update_time": self._clock()}
            )
            self._unwritten.pop(server_uuid, None)
            self._override(server_uuid, run_state)
        return after is not None

    def decide_run_state(self, server_uuid: str, run_state: RunState, only_from: RunState | None = None) -> bool:
        """Say, for the controller itself, whether the engines are to run: it counts at once and is written by `write_decided`.

        False if it was so already, or was not as `only_from` says, or the server is not known.
        """
        present = (self._known or {}).get(server_uuid)
        if present is None or present.run_state is run_state or only_from not in (None, present.run_state):
            return False
        self._unwritten[server_uuid] = run_state
        self._override(server_uuid, run_state)
        self._decided.set()
        return True

    async def write_decided(self) -> None:
        """Wait for decisions of the controller and write them. What could not be written stays to be written."""
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
        """Mark a server as going; SERVER_NOT_FOUND if there is none, ETAG_MISMATCH where it changed since it was read."""
        while True:
            present = await self.get(server_uuid)
            check_etag(present, etag)
            as_read = [~ServerRow.removing, *([ServerRow.generation == present.generation] if etag else [])]
            values = {"removing": True, "update_time": self._clock()}
            if await self._update(server_uuid, and_(*as_read), values) or present.removing:
                return
            # Someone else changed it in the database.
            await self.refresh()

    async def forget(self, server_uuid: str) -> None:
        """Remove the row."""
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
        """Change a row if it is as `present` says; None if it is not."""
        statement = update(ServerRow).where(ServerRow.server_uuid == server_uuid, present).values(values)
        async with self._database.begin() as session:
            await self._guard(session)
            row = (await session.execute(statement.returning(ServerRow))).scalar_one_or_none()
        if row is None:
            return None
        self._changes += 1
        return self._keep(row)

    async def _copy(self) -> dict[str, DeclaredServer]:
        if self._known is None:
            await self.refresh()
        return self._known or {}

    def _keep(self, row: ServerRow) -> DeclaredServer:
        """Put a row into the copy, in the light of what was decided since."""
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


def _order_key(declared: DeclaredServer) -> tuple[datetime, str]:
    return declared.create_time, declared.server_uuid
