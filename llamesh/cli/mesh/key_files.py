"""Finds private keys of TLS that other users can read, for `llamesh doctor`.

Invariant: only the mode of the file counts, not that of its folder: a copy keeps the mode of the file, and a folder may be opened later.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress

from llamesh.cli.mesh import authority
from llamesh.cli.mesh.findings import Finding
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.locations import expanded


def readable_keys(settings: MeshSettings) -> Iterator[Finding]:
    """Return a warning for each key of the front door and of the authority that other users can read."""
    files = authority.Files(settings.home)
    # A key of another program may be readable for a group such as ssl-cert.
    changes = {files.key: "go-rwx", files.authority_key: "go-rwx"}
    if settings.tls_key:
        with suppress(ValueError):
            changes.setdefault(expanded(settings.tls_key, "LLAMESH_TLS_KEY"), "o-rwx")
    for path, change in changes.items():
        with suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & (stat.S_IROTH if change == "o-rwx" else stat.S_IROTH | stat.S_IRGRP):
                power = "certify any host to its clients" if path == files.authority_key else "impersonate the mesh"
                words = f"{path} has mode {mode:04o}: other users can read it, and with it {power}"
                yield Finding("key", "warning", words, f"chmod {change} {shlex.quote(os.fspath(path))}")
