"""Table of users."""

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
    """Id of the user; a later user with the same name has another id."""
    role: Mapped[int]
    contract_id: Mapped[str] = mapped_column(String(64))
    disabled: Mapped[bool]
    standing: Mapped[int]
    """Version of the user's rights: increases with each change of role, contract, `disabled` or password."""
    password_standing: Mapped[int]
    """Standing since the last change of the password; 0 if it was never changed."""
    tokens_until: Mapped[datetime | None] = mapped_column(Timestamp)
    """Time by which all tokens of the present standing have expired; None if there are none."""
    password_hash: Mapped[str] = mapped_column(String(256))
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    update_time: Mapped[datetime] = mapped_column(Timestamp)
