"""Reads the claims of a token without verifying it. Nothing is decided by them: the mesh verifies tokens."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

KEY_PREFIX = "key_"
"""How the id of a key begins; the id of a login does not."""


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a token; empty if it cannot be read."""
    try:
        payload = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def key_id_of(token: str) -> str:
    """The id of the key that a token is; empty if it is a login or cannot be read."""
    found = str(claims_of(token).get("jti", ""))
    return found if found.startswith(KEY_PREFIX) else ""


def end_of(token: str) -> datetime | None:
    """When a token ends; None if it does not say."""
    try:
        return datetime.fromtimestamp(claims_of(token)["exp"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
