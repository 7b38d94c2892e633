"""The reference for a management call: a FastAPI endpoint that does the same work, written as in its documentation.

`GET /users/{username}`: verify the bearer token (HS256), check the scope, read the row with SQLAlchemy's asyncio from SQLite,
answer a validated model. Run by uvicorn with uvloop and httptools, one worker, no access log.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

app = FastAPI()
engine = create_async_engine(os.environ["BENCH_DATABASE"])
sessions = async_sessionmaker(engine, expire_on_commit=False)
bearer = HTTPBearer()


class Base(DeclarativeBase):
    """Tables of the benchmark."""


class UserRow(Base):
    """A user as in the gateway's table."""

    __tablename__ = "users"
    username: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    contract_id: Mapped[str]
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]


class User(BaseModel):
    """A user in an answer."""

    username: str
    role: str
    contract_id: str
    create_time: datetime
    update_time: datetime


def caller(credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> str:
    """Return the verified subject; 401 or 403 otherwise."""
    try:
        claims = jwt.decode(
            credentials.credentials, os.environ["BENCH_SECRET"], ["HS256"], audience="llamesh", issuer="llamesh"
        )
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, str(error)) from error
    if "admin" not in claims["scopes"]:
        raise HTTPException(403, "the token lacks the scope admin")
    return str(claims["sub"])


@app.get("/users/{username}")
async def get_user(username: str, _: Annotated[str, Depends(caller)]) -> User:
    """Return a user."""
    async with sessions() as session:
        row = (await session.execute(select(UserRow).where(UserRow.username == username))).scalar_one_or_none()
    if row is None:
        raise HTTPException(404, "no such user")
    return User.model_validate(row, from_attributes=True)


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer a health check."""
    return {"status": "ok"}
