"""The secret of a mesh: JWT_SECRET, or one that is created once and stored in LLAMESH_HOME/secrets.

Invariant: the secret itself signs tokens only. All other signatures use a key that is derived from it for one purpose. All replicas
of a service need the same secret.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from pathlib import Path

from llamesh import home_files
from llamesh.kit.config import Settings
from llamesh.kit.errors import StartRefused


def mesh_secret(settings: Settings) -> str:
    """Return the secret in force."""
    return settings.jwt_secret.get_secret_value() if settings.jwt_secret else kept_secret(settings.home)


def derived_key(settings: Settings, purpose: str) -> bytes:
    """Derive a key of 32 bytes for one purpose. It reveals neither the secret nor the keys of other purposes."""
    return hmac.new(mesh_secret(settings).encode(), f"llamesh {purpose}".encode(), hashlib.sha256).digest()


def kept_secret(home: Path, new_secret: Callable[[], str] = lambda: secrets.token_urlsafe(48)) -> str:
    """Return the secret in `home`/secrets/jwt_secret; the first process creates it, readable by its owner only.

    Raises StartRefused if it cannot be used.
    """
    file = home_files.secret(home)
    try:
        secret = file.read_or_create(new_secret)
    except home_files.HomeFileError as error:
        raise StartRefused(f"{error}; {error.remedy}") from error
    try:
        file.path.chmod(0o600)
    except OSError as error:
        words = f"{file.path} cannot be closed to other users: {error.strerror}"
        raise StartRefused(f"{words}; give it to the user that runs the mesh") from error
    return secret
