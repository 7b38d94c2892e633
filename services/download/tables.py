"""The download service's own tables.

Invariant: nobody else reads or writes them. A model's row exists only while its object is published; an object that is
published without a row, or is about to lose its row, stands in `unowned_object` until it has one or is gone. Processes that
share the tables know each other by `Owner.id`: what one of them works on carries its id and a time until which it counts.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from llamesh.kit.database import Base, Timestamp


class State(enum.StrEnum):
    """How a transfer is; the names are those of DownloadState without its prefix."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    VERIFYING = "VERIFYING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ACTIVE = (State.QUEUED, State.RUNNING, State.VERIFYING)
"""States of a transfer that somebody works on, or should."""


class TransferRow(Base):
    """The last transfer of a model."""

    __tablename__ = "transfer"
    __table_args__ = (Index("ix_transfer_create_time", "create_time", "model_uuid"),)
    model_uuid: Mapped[str] = mapped_column(String(128), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    source: Mapped[str] = mapped_column(String(2048))
    """As it was given, with a signature where it has one: a restart needs it. Never shown."""
    shown_source: Mapped[str] = mapped_column(String(4096))
    expected_sha256: Mapped[str] = mapped_column(String(64))
    """Empty: whatever comes."""
    state: Mapped[str] = mapped_column(String(16), index=True)
    attempt: Mapped[int]
    """Rises with every start on request: a worker of an earlier attempt changes nothing any more."""
    resume_count: Mapped[int]
    bytes_done: Mapped[int]
    bytes_total: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    error_reason: Mapped[str] = mapped_column(String(64))
    error_message: Mapped[str] = mapped_column(String(4096))
    """Why it failed, or what it waits for."""
    claimed_by: Mapped[str] = mapped_column(String(4096), default="")
    """The process that works on it; empty: nobody."""
    claim_expires: Mapped[datetime | None] = mapped_column(Timestamp, default=None)
    """When others may take it over, by the clock of the database."""
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    update_time: Mapped[datetime] = mapped_column(Timestamp)


class ModelRow(Base):
    """A model that is ready to be served."""

    __tablename__ = "model"
    __table_args__ = (Index("ix_model_create_time", "create_time", "model_uuid"),)
    model_uuid: Mapped[str] = mapped_column(String(128), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    object_key: Mapped[str] = mapped_column(String(128), index=True)
    source: Mapped[str] = mapped_column(String(4096))
    gguf: Mapped[dict[str, Any]] = mapped_column(JSON)
    """GgufMetadata of the contract, by field name."""
    damage: Mapped[str] = mapped_column(String(128), default="")
    """Which version of the object was read and found damaged (`catalogue.version_of`); empty: none was."""
    problem: Mapped[str] = mapped_column(String(4096), default="")
    """Why it cannot be served: its object was found missing or damaged. Empty: nothing is known against it."""
    create_time: Mapped[datetime] = mapped_column(Timestamp)


class UnownedObjectRow(Base):
    """An object that may be in the store without a model: to be removed unless somebody holds it or a model has it."""

    __tablename__ = "unowned_object"
    object_key: Mapped[str] = mapped_column(String(128), primary_key=True)
    held_by: Mapped[str] = mapped_column(String(4096), default="")
    """The process that is about to give it a model."""
    held_until: Mapped[datetime | None] = mapped_column(Timestamp, default=None)
    """When the hold ends, by the clock of the database; None: nobody holds it."""
    removing: Mapped[bool] = mapped_column(default=False)
    """Somebody removes it: no model can get it any more."""
