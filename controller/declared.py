"""The declared servers: what is wanted, and nothing of what is. Rows of one table, which only the controller reads.

The rows are copied in memory and read from there, so that servers are looked after while the database is away. What people declare is in
the database before it is answered. What the controller decides by itself (asleep when idle, awake for a request) counts at once and is
written when the database takes it.

Invariant: every change of a spec raises its generation by one, and the etag is the generation; wishes that are no part of the spec
(asleep, being removed) leave it alone.
"""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from google.protobuf import json_format
from sqlalchemy import ColumnElement, UniqueConstraint, and_, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from controller.model_files import needed_models
from llamesh.kit.database import Base, Database, Timestamp
from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from llamesh.v1.server_pb2 import ServerChanges, ServerSpec


class RunState(enum.StrEnum):
    """Whether the engines are to run, and if not, why."""

    AWAKE = "awake"
    ASLEEP_IDLE = "idle"
    """Asleep, because no request came for `idle_sleep`."""
    ASLEEP_REQUESTED = "asked"
    """Asleep, because someone said so."""


class ServerRow(Base):
    """One declared server."""

    __tablename__ = "server"
    __table_args__ = (UniqueConstraint("requester", "request_id"),)

    server_uuid: Mapped[str] = mapped_column(primary_key=True)
    model_uuid: Mapped[str] = mapped_column(index=True)
    spec: Mapped[str]
    """ServerSpec as ProtoJSON."""
    generation: Mapped[int]
    owner: Mapped[str]
    requester: Mapped[str]
    """Whose request_id it is: the user's uid, which no later user of its name has; its name where there is none."""
    request_id: Mapped[str | None]
    """None: the call was not to be repeatable."""
    request_digest: Mapped[str] = mapped_column(default="")
    """Of the request with that id; empty where it is not known."""
    engine_memory_bytes: Mapped[int]
    shared_weights_bytes: Mapped[int]
    run_state: Mapped[str] = mapped_column("rest")
    removing: Mapped[bool]
    create_time: Mapped[datetime] = mapped_column(Timestamp, index=True)
    update_time: Mapped[datetime] = mapped_column(Timestamp)


@dataclass(frozen=True, slots=True)
class DeclaredServer:
    """A declared server: the wish."""

    server_uuid: str
    spec: ServerSpec
    """Never to be changed in place."""
    generation: int
    owner: str
    requester: str
    """Whose request_id it is."""
    request_id: str
    """Empty: the call was not to be repeatable."""
    request_digest: str
    engine_memory_bytes: int
    """What one engine is expected to take; 0: not known."""
    shared_weights_bytes: int
    """The part of it that engines of the same model share."""
    run_state: RunState
    removing: bool
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """Changes with every change of the spec."""
        return str(self.generation)

    @property
    def replicas(self) -> int:
        """Engines wanted while awake."""
        return self.spec.replicas or 1


async def _unguarded(_: AsyncSession) -> None:
    """Nobody else writes."""


class DeclaredServers:
    """The store. `clock` and `new_id` make what is otherwise chance and time.

    `guard` is called in every transaction that writes and raises where this process may not write any more (`Lease.guard`).
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
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
            spec=_written(spec),
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
        return _repeated(self._keep(row), request_digest)

    async def requested(
        self, owner: str, request_id: str, request_digest: str, owner_uid: str = ""
    ) -> DeclaredServer | None:
        """The server that a request has declared before, if it is there; REQUEST_ID_REUSED as in `declare`."""
        wanted = (owner_uid or owner, request_id)
        found = (each for each in (await self._copy()).values() if (each.requester, each.request_id) == wanted)
        first = next(found, None)
        return _repeated(first, request_digest) if first is not None else None

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
        return sorted((await self._copy()).values(), key=_place)

    async def page(self, asked: PageQuery, model_uuid: str = "") -> tuple[Sequence[DeclaredServer], str]:
        """One page, by create time and id, and the token of the next."""
        page = asked.of(Listing(f"servers model={model_uuid}", BY_TIME))
        found = [each for each in await self.all() if not model_uuid or model_uuid in needed_models(each.spec)]
        return page.cut([each for each in found if page.after is None or _place(each) > page.after], _place)

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
            _check_etag(present, etag)
            spec = changed(present.spec, changes)
            before = (present.engine_memory_bytes, present.shared_weights_bytes)
            memory = (engine_memory_bytes, shared_weights_bytes) if engine_memory_bytes else before
            if spec == present.spec and memory == before:
                return present
            values = {
                "spec": _written(spec),
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
            _check_etag(present, etag)
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
        declared = _declared(row)
        if (run_state := self._unwritten.get(row.server_uuid)) is not None:
            declared = replace(declared, run_state=run_state)
        if self._known is not None:
            self._known[row.server_uuid] = declared
        return declared

    def _override(self, server_uuid: str, run_state: RunState) -> None:
        if self._known is not None and server_uuid in self._known:
            self._changes += 1
            self._known[server_uuid] = replace(self._known[server_uuid], run_state=run_state)


def changed(spec: ServerSpec, changes: ServerChanges) -> ServerSpec:
    """The spec with what is set in `changes`."""
    result = ServerSpec()
    result.CopyFrom(spec)
    if changes.HasField("replicas"):
        result.replicas = changes.replicas
    if changes.HasField("parameters"):
        result.parameters.CopyFrom(changes.parameters)
    if changes.HasField("idle_sleep"):
        result.idle_sleep.CopyFrom(changes.idle_sleep)
    if changes.HasField("wake_budget"):
        result.wake_budget.CopyFrom(changes.wake_budget)
    if changes.HasField("metered"):
        result.metered = changes.metered
    if changes.HasField("model_name"):
        result.model_name = changes.model_name
    return result


def _check_etag(present: DeclaredServer, etag: str) -> None:
    if etag and etag != present.etag:
        raise MeshError(
            Reason.ERROR_REASON_ETAG_MISMATCH,
            f"the server has changed: its etag is {present.etag}, not {etag}",
            {"etag": present.etag},
        )


def _repeated(first: DeclaredServer, request_digest: str) -> DeclaredServer:
    """The server of the first request with this id, if this is that request again. One of an older release has no digest."""
    if request_digest and first.request_digest and request_digest != first.request_digest:
        why = "was used before, for another request"
        raise MeshError(
            Reason.ERROR_REASON_REQUEST_ID_REUSED,
            f"the request_id {first.request_id} {why}: it declared the server {first.server_uuid}",
            {"requestId": first.request_id, "serverUuid": first.server_uuid},
            (FieldViolation("request_id", why),),
        )
    return first


def not_found(server_uuid: str) -> MeshError:
    """The error for a server that is not declared."""
    return MeshError(
        Reason.ERROR_REASON_SERVER_NOT_FOUND, f"no server has the id {server_uuid}", {"serverUuid": server_uuid}
    )


def _place(declared: DeclaredServer) -> tuple[datetime, str]:
    return declared.create_time, declared.server_uuid


def _written(spec: ServerSpec) -> str:
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, indent=None)


def _declared(row: ServerRow) -> DeclaredServer:
    # A spec that a newer release wrote may hold fields that this one does not know.
    spec = json_format.Parse(row.spec, ServerSpec(), ignore_unknown_fields=True)
    return DeclaredServer(
        row.server_uuid,
        spec,
        row.generation,
        row.owner,
        row.requester,
        row.request_id or "",
        row.request_digest,
        row.engine_memory_bytes,
        row.shared_weights_bytes,
        RunState(row.run_state),
        row.removing,
        row.create_time,
        row.update_time,
    )
