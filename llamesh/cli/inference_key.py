"""The key that `llamesh env` gives to programs: it grants inference and ends within a day, while a login may do all that its user may.

The key is made when it is first needed, kept in a file of this user, and given again while it works and has half of its time left.
Invariant: it is given only for the mesh and the user that it was made for.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from llamesh.cli.connection import connected
from llamesh.cli.token_claims import claims_of, end_of, key_id_of
from llamesh.client.contexts import config_folder
from llamesh.private_files import write_private

if TYPE_CHECKING:
    from llamesh.client.sync import Client

DAYS = 1
MIN_LEFT = timedelta(hours=12)


def inference_key(token: str, now: datetime) -> str:
    """A token for inference in place of a login's. A token that may not create keys, such as a key for inference, is returned unchanged."""
    claims = claims_of(token)
    if "manage" not in (claims.get("scopes") or ()):
        return token
    with connected() as mesh:
        place = mesh.profile.url
        kept = _kept(place)
        end = end_of(kept)
        if end and end - now > MIN_LEFT and _works(mesh, key_id_of(kept), str(claims.get("sub", ""))):
            return kept
        made = mesh.keys.create(f"llamesh env on {socket.gethostname()}"[:128], days=DAYS).token
    # Without a place to keep it, the next call makes another one.
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(_file(), json.dumps({"url": place, "token": made}).encode())
    return made


def _works(mesh: Client, key_id: str, owner: str) -> bool:
    """Whether a user has such a key and it works."""
    from llamesh.v1 import contract_pb2

    return any(
        (key.key_id, key.owner, key.state) == (key_id, owner, contract_pb2.KEY_STATE_WORKS) for key in mesh.keys.list()
    )


def _file() -> Path:
    return config_folder() / "env_key.json"


def _kept(url: str) -> str:
    """The key that was made for the mesh at this address; empty if there is none."""
    try:
        found = json.loads(_file().read_text("utf-8"))
        return str(found["token"]) if found["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
