"""The declared servers: what is wanted, and nothing of what is. Rows of one table, which only the controller reads.

Invariant: every change of a spec raises its generation by one, and the etag is the generation; wishes that are no part of the spec
(asleep, being removed) leave it alone.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf import json_format
from sqlalchemy import ColumnElement, UniqueConstraint, delete, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from llamesh.kit.database import Base, Database, Timestamp
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import page_key, page_size, page_token
from llamesh.v1.server_pb2 import ServerChanges, ServerSpec


class Rest(enum.StrEnum):
    """Whether the engines are to run, and if not, why."""

    AWAKE = "awake"
    IDLE = "idle"
    """Asleep, because no request came for `idle_sleep`."""
    ASKED = "asked"
    """Asleep, because someone said so."""


class ServerRow(Base):
    """One declared server."""

    __tablename__ = "server"
    __table_args__ = (UniqueConstraint("owner", "request_id"),)

    server_uuid: Mapped[str] = mapped_column(primary_key=True)
    model_uuid: Mapped[str] = mapped_column(index=True)
    spec: Mapped[str]
    """ServerSpec as ProtoJSON."""
    generation: Mapped[int]
    owner: Mapped[str]
    request_id: Mapped[str | None]
    """None: the call was not to be repeatable."""
    engine_memory_bytes: Mapped[int]
    shared_weights_bytes: Mapped[int]
    rest: Mapped[str]
    removing: Mapped[bool]
    create_time: Mapped[datetime] = mapped_column(Timestamp, index=True)
    update_time: Mapped[datetime] = mapped_column(Timestamp)


@dataclass(frozen=True, slots=True)
class Declared:
    """A declared server: the wish."""

    server_uuid: str
    spec: ServerSpec
    """Never to be changed in place."""
    generation: int
    owner: str
    engine_memory_bytes: int
    """What one engine is expected to take; 0: not known."""
    shared_weights_bytes: int
    """The part of it that engines of the same model share."""
    rest: Rest
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


class DeclaredServers:
    """The store. `clock` and `new_id` make what is otherwise chance and time."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id

    async def declare(
        self, spec: ServerSpec, owner: str, request_id: str, engine_memory_bytes: int, shared_weights_bytes: int = 0
    ) -> Declared:
        """Declare a server; the first one again where the owner has used the request id before."""
        now = self._clock()
        row = ServerRow(
            server_uuid=self._new_id(),
            model_uuid=spec.model_uuid,
            spec=_written(spec),
            generation=1,
            owner=owner,
            request_id=request_id or None,
            engine_memory_bytes=engine_memory_bytes,
            shared_weights_bytes=shared_weights_bytes,
            rest=Rest.AWAKE,
            removing=False,
            create_time=now,
            update_time=now,
        )
        try:
            async with self._database.begin() as session:
                session.add(row)
        except IntegrityError:
            async with self._database.read() as session:
                wanted = (ServerRow.owner == owner) & (ServerRow.request_id == request_id)
                first = (await session.execute(select(ServerRow).where(wanted))).scalar_one_or_none()
            if first is None:
                raise
            return _declared(first)
        return _declared(row)

    async def get(self, server_uuid: str) -> Declared:
        """Read one; SERVER_NOT_FOUND where there is none."""
        found = await self.find(server_uuid)
        if found is None:
            raise not_found(server_uuid)
        return found

    async def find(self, server_uuid: str) -> Declared | None:
        """Read one, if there is one."""
        async with self._database.read() as session:
            row = await session.get(ServerRow, server_uuid)
        return _declared(row) if row else None

    async def all(self) -> Sequence[Declared]:
        """All of them, the oldest first."""
        async with self._database.read() as session:
            rows = (await session.execute(select(ServerRow).order_by(*_ORDER))).scalars()
            return [_declared(row) for row in rows]

    async def page(self, size: int, token: str, model_uuid: str = "") -> tuple[Sequence[Declared], str]:
        """One page, by create time and id, and the token of the next; INVALID_PAGE_TOKEN for a strange one."""
        query = f"servers model={model_uuid}"
        statement = select(ServerRow).order_by(*_ORDER).limit(page_size(size) + 1)
        if model_uuid:
            statement = statement.where(ServerRow.model_uuid == model_uuid)
        if key := page_key(query, token):
            statement = statement.where(_after(key))
        async with self._database.read() as session:
            rows = list((await session.execute(statement)).scalars())
        if len(rows) <= page_size(size):
            return [_declared(row) for row in rows], ""
        last = rows[page_size(size) - 1]
        following = page_token(query, last.create_time.isoformat(), last.server_uuid)
        return [_declared(row) for row in rows[:-1]], following

    async def change(
        self,
        server_uuid: str,
        changes: ServerChanges,
        etag: str,
        engine_memory_bytes: int,
        shared_weights_bytes: int = 0,
    ) -> Declared:
        """Change what is set; SERVER_NOT_FOUND, or ETAG_MISMATCH where it changed since it was read.

        A change that changes nothing leaves the generation alone.
        """
        while True:
            present = await self.get(server_uuid)
            if present.removing:
                raise not_found(server_uuid)
            if etag and etag != present.etag:
                raise MeshError(
                    Reason.ERROR_REASON_ETAG_MISMATCH,
                    f"the server has changed: its etag is {present.etag}, not {etag}",
                    {"etag": present.etag},
                )
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
            if await self._update(server_uuid, ServerRow.generation == present.generation, values):
                return await self.get(server_uuid)

    async def set_rest(self, server_uuid: str, rest: Rest, only_from: Rest | None = None) -> bool:
        """Say whether the engines are to run. False where it was so already, or was not as `only_from` says."""
        present = ServerRow.rest == only_from if only_from else ServerRow.rest != rest
        return await self._update(server_uuid, present, {"rest": rest, "update_time": self._clock()})

    async def begin_removal(self, server_uuid: str) -> None:
        """Mark a server as going; SERVER_NOT_FOUND where there is none."""
        await self.get(server_uuid)
        await self._update(server_uuid, ~ServerRow.removing, {"removing": True, "update_time": self._clock()})

    async def forget(self, server_uuid: str) -> None:
        """Remove the row."""
        async with self._database.begin() as session:
            await session.execute(delete(ServerRow).where(ServerRow.server_uuid == server_uuid))

    async def _update(self, server_uuid: str, present: ColumnElement[bool], values: dict[str, object]) -> bool:
        statement = update(ServerRow).where(ServerRow.server_uuid == server_uuid, present).values(values)
        async with self._database.begin() as session:
            result = await session.execute(statement.returning(ServerRow.server_uuid))
            return result.first() is not None


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


def not_found(server_uuid: str) -> MeshError:
    """The error for a server that is not declared."""
    return MeshError(
        Reason.ERROR_REASON_SERVER_NOT_FOUND, f"no server has the id {server_uuid}", {"serverUuid": server_uuid}
    )


_ORDER = (ServerRow.create_time, ServerRow.server_uuid)


def _after(key: Sequence[str | int | float]) -> ColumnElement[bool]:
    time, server_uuid = key
    return tuple_(*_ORDER) > tuple_(datetime.fromisoformat(str(time)), str(server_uuid))


def _written(spec: ServerSpec) -> str:
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, indent=None)


def _declared(row: ServerRow) -> Declared:
    # A spec that a newer release wrote may hold fields that this one does not know.
    spec = json_format.Parse(row.spec, ServerSpec(), ignore_unknown_fields=True)
    return Declared(
        row.server_uuid,
        spec,
        row.generation,
        row.owner,
        row.engine_memory_bytes,
        row.shared_weights_bytes,
        Rest(row.rest),
        row.removing,
        row.create_time,
        row.update_time,
    )
