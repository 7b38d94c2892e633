"""Paging for every list of the mesh (AIP-158): a page begins after the last position of the previous page.

A page token contains that position, signed with a key that only the mesh has. Invariant: a token is valid only for the list and the
arguments that it was made for. Callers cannot forge one, so its content has the expected types.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from llamesh.kit.config import Settings
from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.kit.secret import derived_key

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
FIELD = "page_token"
"""Name of the field in every request for a page."""

_SIGNATURE_BYTES = 16

Key: TypeAlias = tuple[str | int | datetime, ...]
"""Sort key of a list."""
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Listing:
    """A list: a name that contains all arguments which filter it, and the types of its sort key."""

    name: str
    kinds: tuple[type[str] | type[int] | type[datetime], ...]
    largest: int = MAX_PAGE_SIZE
    """Maximum number of rows in a page."""


BY_TIME = (datetime, str)
"""Sort key of lists ordered by time, then id."""


@dataclass(frozen=True, slots=True)
class Page:
    """A requested page."""

    size: int
    """Maximum number of rows."""
    after: Key | None
    """Key of the last row of the page before; None for the first page."""
    _token: Callable[[Key], str]

    def select(
        self,
        query: Select[Row],
        order: Sequence[InstrumentedAttribute[Any]],
        *,
        backwards: bool = False,
    ) -> Select[Row]:
        """Return the query for the rows of this page and one more, which shows whether another page follows."""
        query = query.order_by(*(column.desc() if backwards else column.asc() for column in order))
        if self.after is not None:
            place = tuple_(*order)
            query = query.where(place < self.after if backwards else place > self.after)
        return query.limit(self.size + 1)

    def cut(self, rows: Sequence[Row], key: Callable[[Row], Key]) -> tuple[Sequence[Row], str]:
        """Return the rows of this page and the token of the next, empty at the end. `rows` is the rest of the list, or from `select`."""
        if len(rows) <= self.size:
            return rows, ""
        page = rows[: self.size]
        return page, self._token(key(page[-1]))


class PageRequest(Protocol):
    """A request for a page of any list."""

    page_size: int
    page_token: str


class Pages:
    """Makes and reads the page tokens of a service. `key` is secret and the same in all replicas."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def query(self, request: PageRequest) -> PageQuery:
        """Return the page query of a request."""
        return PageQuery(self, request.page_size, request.page_token)

    def page(self, listing: Listing, size: int, token: str) -> Page:
        """Return the requested page; INVALID_PAGE_TOKEN. A `size` of 0 means the default; larger sizes than the maximum are reduced."""
        after = self._read(listing, token) if token else None
        return Page(min(size or DEFAULT_PAGE_SIZE, listing.largest), after, lambda key: self._token(listing, key))

    def _token(self, listing: Listing, key: Key) -> str:
        parts = [part.astimezone(UTC).isoformat() if isinstance(part, datetime) else part for part in key]
        text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()
        return base64.urlsafe_b64encode(self._signature(listing, text) + text).decode().rstrip("=")

    def _read(self, listing: Listing, token: str) -> Key:
        try:
            # Accept our own alphabet only: without `validate`, the decoder skips other characters.
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise _refused("is damaged") from error
        signature, text = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(listing, text)):
            raise _refused("was not made by this mesh for this list and these arguments")
        try:
            parts = json.loads(text)
            return tuple(_part(kind, part) for kind, part in zip(listing.kinds, parts, strict=True))
        except (ValueError, TypeError, OverflowError) as error:
            raise _refused("was made by another release") from error

    def _signature(self, listing: Listing, text: bytes) -> bytes:
        # The length of the name comes first, so that name and key cannot be confused.
        name = listing.name.encode()
        signed = len(name).to_bytes(8, "big") + name + text
        return hmac.new(self._key, signed, hashlib.sha256).digest()[:_SIGNATURE_BYTES]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Size and token of a request, for a list that the domain code names."""

    pages: Pages
    size: int = 0
    token: str = ""

    def of(self, listing: Listing) -> Page:
        """Return the page of this list; INVALID_PAGE_TOKEN."""
        return self.pages.page(listing, self.size, self.token)


def open_pages(settings: Settings) -> Pages:
    """Create `Pages` with the key of the mesh, so that tokens stay valid after a restart and in every replica."""
    return Pages(derived_key(settings, "page tokens"))


def _part(kind: type[str] | type[int] | type[datetime], value: object) -> str | int | datetime:
    if kind is int and type(value) is int:
        return value
    if kind is int or not isinstance(value, str):
        raise TypeError("a part of a key has another type than the list")
    return datetime.fromisoformat(value).astimezone(UTC) if kind is datetime else value


def _refused(why: str) -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_INVALID_PAGE_TOKEN, f"{FIELD} {why}", {"field": FIELD}, (FieldViolation(FIELD, why),)
    )
