"""The download service's own tables.

Invariant: nobody else reads or writes them. A model's row exists only while its object is published; an object that is
published without a row, or is about to lose its row, stands in `unowned_object` until it has one or is gone.
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
    object_key: Mapped[str] = mapped_column(String(128))
    source: Mapped[str] = mapped_column(String(4096))
    gguf: Mapped[dict[str, Any]] = mapped_column(JSON)
    """GgufMetadata of the contract, by field name."""
    create_time: Mapped[datetime] = mapped_column(Timestamp)


class UnownedObjectRow(Base):
    """An object that may be in the store without a model: to be removed unless a model has it."""

    __tablename__ = "unowned_object"
    object_key: Mapped[str] = mapped_column(String(128), primary_key=True)
