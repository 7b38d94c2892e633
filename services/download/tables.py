"""The tables of the download service.

Invariant: no other service reads or writes them. A model's row exists only while the objects of its files are published. An object that is
no model's file has a row in `unowned_object` until it becomes one or is removed. An object that is written in parts has a row in
`partial_object` from before its creation until after its removal. `Owner.id` identifies the processes that share the tables: a row that a
process works on has its id and the time at which this claim expires.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from llamesh.kit.database import Base, Timestamp

MAX_SUBJECT = 256
"""Maximum number of characters of a caller's subject that are stored: an issuer of tokens beside the mesh has no limit of its own."""

NO_FILE = "none"
"""The source of the projector, and name and source of the adapter, of a model that gets none."""

MODEL_ORDERS = ("create_time", "search_name", "size_bytes")
"""Columns by which lists of models are ordered."""


class TransferState(enum.StrEnum):
    """State of a transfer. The names are those of DownloadState without its prefix."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    VERIFYING = "VERIFYING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"


ACTIVE = (TransferState.QUEUED, TransferState.RUNNING, TransferState.VERIFYING)
"""States of a transfer that runs or waits for its turn."""
UNENDED = (*ACTIVE, TransferState.PAUSED)
"""States of a transfer that has not ended."""


class TransferRow(Base):
    """The last transfer of a model."""

    __tablename__ = "transfer"
    __table_args__ = (Index("ix_transfer_create_time", "create_time", "model_uuid"),)
    model_uuid: Mapped[str] = mapped_column(String(128), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    source: Mapped[str] = mapped_column(String(2048))
    """The source as the caller gave it, possibly with a signature: a restart needs it. Never shown."""
    shown_source: Mapped[str] = mapped_column(String(4096))
    revision: Mapped[str] = mapped_column(String(64), default="")
    """The revision of the source at its last opening; empty if unknown."""
    requested_by: Mapped[str] = mapped_column(String(MAX_SUBJECT), default="")
    """Subject of the caller who started the transfer last; empty if unknown."""
    projector: Mapped[str] = mapped_column(String(2048), default="")
    """The source of the projector as `source`; NO_FILE, or empty: the one that the source has."""
    adapters: Mapped[list[list[str]]] = mapped_column(JSON, default=list)
    """Name and source, as `source`, of each LoRA adapter; one that is NO_FILE, or empty: those that the source has."""
    expected_sha256: Mapped[str] = mapped_column(String(64))
    """The SHA-256 that the caller requires; empty if any is accepted."""
    fetched_with: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The values of the request that brought the model which is there, by column, while those of the row are of a later transfer that has
    brought none; else empty (`transfer_requests`)."""
    state: Mapped[str] = mapped_column(String(16), index=True)
    attempt: Mapped[int]
    """Starts at a random number, and increases with each start and pause by a caller and when the parts of a stopped transfer are given up.
    A run of an earlier attempt or deleted row changes nothing."""
    resume_count: Mapped[int]
    bytes_done: Mapped[int]
    bytes_total: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    error_reason: Mapped[str] = mapped_column(String(64))
    error_message: Mapped[str] = mapped_column(String(4096))
    """Why the transfer failed, or the reason for which it waits."""
    claimed_by: Mapped[str] = mapped_column(String(4096), default="")
    """The process that runs it; empty if there is none."""
    claim_expires: Mapped[datetime | None] = mapped_column(Timestamp, default=None)
    """When another process may take the transfer over, by the clock of the database."""
    holds: Mapped[bool] = mapped_column(default=False)
    """Whether transfers of its source may wait for it, as the process says that has the claim (`claims`)."""
    killed_runs: Mapped[int] = mapped_column(default=0)
    """Number of the last runs in a row whose process was killed without progress (`killed_runs`)."""
    killed_bytes: Mapped[int] = mapped_column(default=0)
    """The most bytes that a run had when it was killed: more are progress."""
    hidden: Mapped[bool] = mapped_column(default=False)
    """Whether a caller removed the record; the row stays for its model. Never true of a transfer that has not ended."""
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    update_time: Mapped[datetime] = mapped_column(Timestamp)

    def drop_claim(self) -> None:
        """Let no process run the transfer. Nothing waits for it until one does."""
        self.claimed_by, self.claim_expires, self.holds = "", None, False


class ModelRow(Base):
    """A model that is ready to be served."""

    __tablename__ = "model"
    __table_args__ = (
        *(Index(f"ix_model_{order}", order, "model_uuid") for order in MODEL_ORDERS),
        *(
            Index(f"ix_model_{column}_{order}", column, order, "model_uuid")
            for column in ("architecture", "quantisation", "source_kind")
            for order in MODEL_ORDERS
        ),
    )
    model_uuid: Mapped[str] = mapped_column(String(128), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    search_name: Mapped[str] = mapped_column(String(128), default="")
    """The name in lower case; this and the next three columns are for searches (`model_search`)."""
    architecture: Mapped[str] = mapped_column(String(1024), default="")
    quantisation: Mapped[str] = mapped_column(String(64), default="")
    source_kind: Mapped[str] = mapped_column(String(16), default="")
    size_bytes: Mapped[int]
    """Bytes of all files."""
    source: Mapped[str] = mapped_column(String(4096))
    revision: Mapped[str] = mapped_column(String(64), default="")
    """The revision of the source that the bytes come from; empty if unknown."""
    fetched_by: Mapped[str] = mapped_column(String(MAX_SUBJECT), default="")
    """Subject of the caller who started the transfer of the bytes; empty if unknown."""
    gguf: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The message GgufMetadata, by field name."""
    source_facts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The message SourceFacts, by field name; empty for models of earlier releases."""
    aliases: Mapped[list[str]] = mapped_column(JSON, default=list)
    """The further names, oldest first: those of the rows of `model_alias`."""
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    deletion: Mapped[str] = mapped_column(String(32), default="")
    """The mark of the deletion that is under way; empty if there is none (`deletions`)."""
    deletion_expires: Mapped[datetime | None] = mapped_column(Timestamp, default=None)
    """When the mark expires, by the clock of the database."""
    files: Mapped[list[ModelFileRow]] = relationship(
        primaryjoin="ModelRow.model_uuid == foreign(ModelFileRow.model_uuid)",
        order_by="ModelFileRow.number",
        lazy="selectin",
        cascade="all, delete-orphan",
    )
    """At least one; the first part of the weights comes first."""

    @property
    def digests(self) -> list[str]:
        """The SHA-256 of each file."""
        return [file.sha256 for file in self.files]

    @property
    def sha256(self) -> str:
        """SHA-256 of the first file."""
        return self.files[0].sha256

    @property
    def problem(self) -> str:
        """Why the model cannot be served: an object is missing or damaged. Empty if there is no known problem."""
        return next((file.problem for file in self.files if file.problem), "")


class ModelFileRow(Base):
    """A file of a model. Files with the same bytes share one object."""

    __tablename__ = "model_file"
    model_uuid: Mapped[str] = mapped_column(String(128), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """Files are numbered from 1."""
    role: Mapped[str] = mapped_column(String(16))
    """See `sources.FileRole`."""
    name: Mapped[str] = mapped_column(String(1024))
    """The file's name in the source; the source may have given none."""
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    object_key: Mapped[str] = mapped_column(String(128), index=True)
    damage: Mapped[str] = mapped_column(String(128), default="")
    """The version of the object that was found damaged (`present_objects.version_of`); empty if none was."""
    source_version: Mapped[str] = mapped_column(String(64), default="", index=True)
    """Which version of which source the bytes came from (`present_objects`); empty if unknown."""
    quality: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The message QuantReport, by field name; empty if the file comes without."""
    problem: Mapped[str] = mapped_column(String(4096), default="")
    """Why the file cannot be used: its object is missing or damaged. Empty if there is no known problem."""


class ModelTagRow(Base):
    """A tag of a model, in lower case."""

    __tablename__ = "model_tag"
    tag: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_uuid: Mapped[str] = mapped_column(String(128), primary_key=True, index=True)


class ModelAliasRow(Base):
    """A further name of a model."""

    __tablename__ = "model_alias"
    alias: Mapped[str] = mapped_column(String(128), primary_key=True)
    model_uuid: Mapped[str] = mapped_column(String(128), index=True)


class UnownedObjectRow(Base):
    """An object that may be in the store without a model. It is removed unless a process holds it or a model has it."""

    __tablename__ = "unowned_object"
    object_key: Mapped[str] = mapped_column(String(128), primary_key=True)
    held_by: Mapped[str] = mapped_column(String(4096), default="")
    """The process that is about to record a model with the object."""
    held_until: Mapped[datetime | None] = mapped_column(Timestamp, default=None)
    """When the hold expires, by the clock of the database; None if the object is not held."""
    removing: Mapped[bool] = mapped_column(default=False)
    """Whether the object is being removed; it cannot get a model any more."""


class PartialObjectRow(Base):
    """An object of the store that an attempt of a transfer writes in parts."""

    __tablename__ = "partial_object"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    object_key: Mapped[str] = mapped_column(String(128), default="")
    """The key under which it is uploaded, if its digest was known when it began; empty if it is staged under its name."""
    model_uuid: Mapped[str] = mapped_column(String(128), index=True)
    attempt: Mapped[int]
    file_number: Mapped[int]
    """Which file of the model it is, from 1."""
    upload: Mapped[str] = mapped_column(String(2048), default="")
    """The store's id of the object; empty if it has none."""
    size: Mapped[int]
    part_size: Mapped[int]
    etag: Mapped[str] = mapped_column(String(1024))
    """The ETag of the source's object. A resumed transfer must find the same."""
    revision: Mapped[str] = mapped_column(String(64))


class ObjectPartRow(Base):
    """A part that the store has durably."""

    __tablename__ = "object_part"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """Parts are numbered from 1."""
    tag: Mapped[str] = mapped_column(String(256))
    """The store's tag of the part; empty if it has none."""
