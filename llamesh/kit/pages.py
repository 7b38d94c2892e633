"""Pages of a list (AIP-158): opaque tokens that carry the last key seen and are bound to the query they were made for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from llamesh.kit.errors import MeshError, Reason

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


def page_size(asked: int) -> int:
    """How many to return: the default for 0, never more than the maximum."""
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def page_token(query: str, *key: str | int | float) -> str:
    """The token for the page after `key`; `query` is everything else that selects the list."""
    text = json.dumps([_digest(query), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def page_key(query: str, token: str) -> list[str | int | float] | None:
    """The key that a token carries; None for the first page, INVALID_PAGE_TOKEN where it was not made for this query."""
    if not token:
        return None
    try:
        digest: str
        key: list[str | int | float]
        digest, *key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise MeshError(Reason.ERROR_REASON_INVALID_PAGE_TOKEN, "page_token is damaged") from error
    if digest != _digest(query) or not key or not all(isinstance(part, str | int | float) for part in key):
        raise MeshError(Reason.ERROR_REASON_INVALID_PAGE_TOKEN, "page_token belongs to another query")
    return key


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:12]
