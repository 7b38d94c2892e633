"""The table of declared servers and the conversion of its rows. Only the controller reads and writes it.

Invariant: a row that a newer release wrote can be read; fields of the spec that are unknown here are ignored.
"""

from __future__ import annotations

from datetime import datetime

from google.protobuf import json_format
from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from controller.declared import DeclaredServer, RunState
from llamesh.kit.database import Base, Timestamp
from llamesh.v1.server_pb2 import ServerSpec


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
    """Id of the user who sent `request_id`, which is unique among users past and present; the user's name if the user has no id."""
    request_id: Mapped[str | None]
    """Idempotency key of the call that declared the server; None if the call had none."""
    request_digest: Mapped[str] = mapped_column(default="")
    """Digest of the request that declared the server; empty if unknown."""
    engine_memory_bytes: Mapped[int]
    shared_weights_bytes: Mapped[int]
    run_state: Mapped[str] = mapped_column("rest")
    removing: Mapped[bool]
    create_time: Mapped[datetime] = mapped_column(Timestamp, index=True)
    update_time: Mapped[datetime] = mapped_column(Timestamp)


def spec_json(spec: ServerSpec) -> str:
    """Encode a spec as ProtoJSON for a row."""
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, indent=None)


def declared_server(row: ServerRow) -> DeclaredServer:
    """Decode a row."""
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
