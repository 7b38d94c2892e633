"""The list of the files of a backup, which is its last entry.

Invariant: neither the names nor the text are kept, so an archive cannot exhaust the memory with them.
"""

from __future__ import annotations

import hashlib
import json


class FileListing:
    """Digest of the text of the last entry: `json.dumps` of the SHA-256 of each file by name, in the order of the archive."""

    def __init__(self) -> None:
        self._digest, self._separator = hashlib.sha256(b"{"), ""

    def add(self, name: str, digest: str) -> None:
        """Add the next file."""
        self._digest.update(f"{self._separator}{json.dumps(name)}: {json.dumps(digest)}".encode())
        self._separator = ", "

    def sha256(self) -> str:
        """Digest of the text if no file follows."""
        complete = self._digest.copy()
        complete.update(b"}")
        return complete.hexdigest()
