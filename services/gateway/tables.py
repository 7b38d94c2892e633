"""The gateway's table of users."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from llamesh.kit.database import Base, Timestamp


class User(Base):
    """A person or program that can log in."""

    __tablename__ = "users"

    username: Mapped[str] = mapped_column(String(64), primary_key=True)
    uid: Mapped[str] = mapped_column(String(64), unique=True)
    """No later user of the same name has it."""
    role: Mapped[int]
    contract_id: Mapped[str] = mapped_column(String(64))
    disabled: Mapped[bool]
    standing: Mapped[int]
    """Rises with each change of role, contract or `disabled`, and with each new password."""
    password_standing: Mapped[int]
    """The standing since the last new password; 0: the first one."""
    tokens_until: Mapped[datetime | None] = mapped_column(Timestamp)
    """When the last token of the present standing has expired, or later; None: it has none."""
    password_hash: Mapped[str] = mapped_column(String(256))
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    update_time: Mapped[datetime] = mapped_column(Timestamp)
