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

from llamesh.kit.config import MIN_SECRET_LENGTH, Settings
from llamesh.kit.errors import StartRefused
from llamesh.locations import make_private
from llamesh.private_files import create_private


def mesh_secret(settings: Settings) -> str:
    """Return the secret in force."""
    return settings.jwt_secret.get_secret_value() if settings.jwt_secret else kept_secret(settings.home)


def derived_key(settings: Settings, purpose: str) -> bytes:
    """Derive a key of 32 bytes for one purpose. It reveals neither the secret nor the keys of other purposes."""
    return hmac.new(mesh_secret(settings).encode(), f"llamesh {purpose}".encode(), hashlib.sha256).digest()


def kept_secret(home: Path, new_secret: Callable[[], str] = lambda: secrets.token_urlsafe(48)) -> str:
    """Return the secret in `home`/secrets/jwt_secret; the first process creates it, readable by its owner only.

    Raises StartRefused for a folder, and for a file that is empty, cut or filled with zeros: earlier releases did not sync it, so a power
    failure could damage it, and anyone can sign tokens with a secret that is known.
    """
    path = make_private(home / "secrets") / "jwt_secret"
    if not path.exists():
        create_private(path, new_secret().encode())
    secret = ""
    if not path.is_dir():
        path.chmod(0o600)
        secret = path.read_bytes().decode(errors="replace").strip()
    if len(secret) < MIN_SECRET_LENGTH or "\0" in secret or "\N{REPLACEMENT CHARACTER}" in secret:
        raise StartRefused(
            f"{path} is damaged: it must hold a text of at least {MIN_SECRET_LENGTH} characters. Put it back from a backup, set JWT_SECRET"
            " to the former secret, or delete the file: then a new secret is created and all tokens and keys end"
        )
    return secret
