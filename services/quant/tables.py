"""The tables of the Quant service.

Invariant: only the service's process writes them; the programs of the steps do not. A variant is visible if it has a row in `quant_model`,
which is written in the transaction that ends its step `publish`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from llamesh.kit.database import Base, Timestamp


class QuantJobRow(Base):
    """A job."""

    __tablename__ = "quant_job"
    __table_args__ = (
        Index("ix_quant_job_create_time", "create_time", "job_id"),
        Index("ix_quant_job_request", "owner_uid", "request_id"),
    )
    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_uuid: Mapped[str] = mapped_column(String(128))
    """The source, a model of the catalogue. Empty if it is a checkpoint."""
    source: Mapped[str] = mapped_column(String(2048), default="")
    """The source, the canonical address of a checkpoint at its revision. Empty if it is a model of the catalogue."""
    shown_source: Mapped[str] = mapped_column(String(2048), default="")
    """The same as it may be shown."""
    source_sha256: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(128))
    types: Mapped[list[str]] = mapped_column(JSON)
    allow_requantize: Mapped[bool]
    pure: Mapped[bool]
    importance_matrix: Mapped[bool] = mapped_column(default=False)
    matrix_source: Mapped[str] = mapped_column(String(2048), default="")
    """The address of the importance matrix that the job was given; empty: it is measured, or there is none."""
    matrix_version: Mapped[str] = mapped_column(String(255), default="")
    """The version of that file when the job was submitted."""
    calibration_text: Mapped[str] = mapped_column(Text, default="", deferred=True)
    """The text that the importance matrix is measured with; empty: that of llamesh. Only `Jobs.calibration_text` reads it."""
    max_kl_divergence: Mapped[float]
    """0 means the limit of each type."""
    state: Mapped[str] = mapped_column(String(16), index=True)
    attempt: Mapped[int]
    """Increases with every start by a caller; a run of an earlier attempt changes nothing."""
    workflow: Mapped[str] = mapped_column(String(63), default="")
    """Name of the workflow on a cluster that is not known to have ended, of this attempt or an earlier one. Empty: there is none."""
    owner: Mapped[str] = mapped_column(String(256))
    owner_uid: Mapped[str] = mapped_column(String(256))
    """The owner of the request_id."""
    requester_uid: Mapped[str] = mapped_column(String(256))
    """The user whose rights decide whether this attempt goes on, and whose turn it takes: the owner, or who has retried the job."""
    request_id: Mapped[str] = mapped_column(String(128))
    request_digest: Mapped[str] = mapped_column(String(64))
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    update_time: Mapped[datetime] = mapped_column(Timestamp)


class QuantStepRow(Base):
    """A step of a job."""

    __tablename__ = "quant_step"
    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    """Position in the order of the job's steps, from 0."""
    kind: Mapped[str] = mapped_column(String(16))
    type: Mapped[str] = mapped_column(String(16))
    """Empty for a step of the whole job."""
    state: Mapped[str] = mapped_column(String(16))
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    tries: Mapped[int] = mapped_column(default=0)
    """Starts that were not interrupted by the end of the service."""
    error_reason: Mapped[str] = mapped_column(String(64), default="")
    error_message: Mapped[str] = mapped_column(String(4096), default="")
    log: Mapped[str] = mapped_column(String(4096), default="")
    """The last lines of its program."""
    result: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The result of its program."""
    object_key: Mapped[str] = mapped_column(String(128), default="")
    """For a step `publish`: the object that it may have published. Empty if nothing has to be removed."""
    start_time: Mapped[datetime | None] = mapped_column(Timestamp, default=None)
    end_time: Mapped[datetime | None] = mapped_column(Timestamp, default=None)


class QuantModelRow(Base):
    """A variant that is published."""

    __tablename__ = "quant_model"
    __table_args__ = (Index("ix_quant_model_create_time", "create_time", "model_uuid"),)
    model_uuid: Mapped[str] = mapped_column(String(128), primary_key=True)
    name: Mapped[str] = mapped_column(String(160))
    object_key: Mapped[str] = mapped_column(String(128))
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    quantisation: Mapped[str] = mapped_column(String(16))
    source_model_uuid: Mapped[str] = mapped_column(String(128))
    source: Mapped[str] = mapped_column(String(2048), default="")
    """The checkpoint that it was made from, as it may be shown."""
    source_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(64))
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The message QuantReport, by field name."""
    create_time: Mapped[datetime] = mapped_column(Timestamp)
