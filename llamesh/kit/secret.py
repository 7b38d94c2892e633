"""The secret of a mesh: JWT_SECRET, or one that is made once and kept in LLAMESH_HOME/secrets.

Invariant: what is not a token of the mesh is never signed with the secret itself, but with a key that is derived from it for one purpose.
All replicas of a service have the same secret: tokens could not be verified otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from llamesh.kit.config import Settings
from llamesh.locations import make_private


def mesh_secret(settings: Settings) -> str:
    """The secret in force."""
    return settings.jwt_secret.get_secret_value() if settings.jwt_secret else kept_secret(settings.home)


def derived_key(settings: Settings, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose: it says nothing about the secret, nor about the keys of other purposes."""
    return hmac.new(mesh_secret(settings).encode(), f"llamesh {purpose}".encode(), hashlib.sha256).digest()


def kept_secret(home: Path, new_secret: Callable[[], str] = lambda: secrets.token_urlsafe(48)) -> str:
    """The secret in `home`/secrets/jwt_secret, made by whoever comes first; readable by its owner only."""
    path = make_private(home / "secrets") / "jwt_secret"
    if not path.exists():
        descriptor, draft = tempfile.mkstemp(dir=path.parent)
        try:
            os.write(descriptor, new_secret().encode())
            # A link is made whole or not at all, and fails where another process was faster: its secret counts.
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft)
        finally:
            os.close(descriptor)
            Path(draft).unlink()
    path.chmod(0o600)
    return path.read_text().strip()
