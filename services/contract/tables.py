"""The contract service's own tables.

Invariant: no other service reads or writes these tables. Lists are paged by their whole sort key (llamesh.kit.pages), so no row is listed
twice, and no row that existed from the beginning is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from llamesh.kit.database import Base, Timestamp

Clock = Callable[[], datetime]
"""Returns the current time in UTC."""

NewId = Callable[[str], str]
"""Returns a new unique id that begins with the prefix."""


class ContractRow(Base):
    """A contract."""

    __tablename__ = "contract"
    contract_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    display_name: Mapped[str] = mapped_column(String(128))
    max_concurrent_requests: Mapped[int]
    models: Mapped[list[str]] = mapped_column(JSON)
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    update_time: Mapped[datetime] = mapped_column(Timestamp)
    removing_until: Mapped[datetime | None] = mapped_column(Timestamp)
    """Mark of a deletion: until this time the contract is assigned to no user. The mark of an interrupted deletion expires."""


class KeyRow(Base):
    """A key. Its token is not stored."""

    __tablename__ = "issued_key"
    key_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    display_name: Mapped[str] = mapped_column(String(128))
    owner: Mapped[str] = mapped_column(String(128))
    owner_uid: Mapped[str] = mapped_column(String(64))
    """Id of the owner; empty in keys from before users had ids."""
    contract_id: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    expire_time: Mapped[datetime] = mapped_column(Timestamp)
    revoke_time: Mapped[datetime | None] = mapped_column(Timestamp)
    made_by: Mapped[str | None] = mapped_column(String(64))
    """Id of the key with which it was made; None: of a login, or from before this was recorded."""


class UsageRow(Base):
    """Usage of one model by one user under one contract on one day."""

    __tablename__ = "usage_day"
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    subject: Mapped[str] = mapped_column(String(128), primary_key=True)
    model_name: Mapped[str] = mapped_column(String(256), primary_key=True)
    contract_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    requests: Mapped[int]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    unknown_requests: Mapped[int]
    uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Id of the user; empty for tokens from before users had ids."""


class UsageBatchRow(Base):
    """A batch of usage that was added to `usage_day` in the same transaction, so that a repeated write adds it only once."""

    __tablename__ = "usage_batch"
    batch_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    create_time: Mapped[datetime] = mapped_column(Timestamp)


class DecisionRow(Base):
    """A decision and its reasons. `refusals` and `memory` hold the messages of contract.proto as JSON."""

    __tablename__ = "decision"
    decision_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    subject: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(16))
    object: Mapped[str] = mapped_column(String(256))
    allowed: Mapped[bool]
    refusals: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    memory: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    contract_id: Mapped[str] = mapped_column(String(64))


@dataclass(frozen=True, slots=True)
class RowOwner:
    """The user whose rows are selected, without the rows of earlier users of the same name."""

    name: str
    uid: str
    since: datetime
    """When the user was created."""
