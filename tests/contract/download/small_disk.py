"""A small disk below the object store: the free bytes that the store is told, without a file system of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.disk_space import RESERVE_BYTES, DiskSpace
from llamesh.kit.config import Settings
from tests.files import files_below


class Disk:
    """The disk of the store: `size` bytes for models, of which it has all but those that the store has written, and what stays free."""

    def __init__(self, size: int, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size = size
        self._objects = settings.home / "objects"
        monkeypatch.setattr("llamesh.kit.objects.directory.disk_space", self._space)

    @property
    def used(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_blocks * 512 for path in files_below(self._objects))

    def _space(self, _: Path) -> DiskSpace:
        return DiskSpace(RESERVE_BYTES + self.size - self.used, RESERVE_BYTES + self.size)
