"""The headers of a backup as tarfile reads them.

Invariant: a header that makes tarfile occupy memory without bound is refused before more of it is read.
"""

from __future__ import annotations

import tarfile

MAX_HEADER = 1 << 16
"""Bytes of an extended header, which is read at once. One of `archive` has a path and three short fields."""


class ForeignHeaderError(Exception):
    """A header of a kind or size that no backup has."""


class EntryHeader(tarfile.TarInfo):
    """A header of an entry. One that makes tarfile occupy memory without bound is refused before more of it is read."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # These two methods are the places that tarfile has for other kinds of headers.
        extended = self.type == tarfile.XHDTYPE
        refused = {tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES}
        if self.size < 0 or self.type in refused or (extended and self.size > MAX_HEADER):
            raise ForeignHeaderError
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found

    def _proc_gnusparse_10(self, *_: object) -> None:
        # The map of holes is read until its end, which may be missing.
        raise ForeignHeaderError
