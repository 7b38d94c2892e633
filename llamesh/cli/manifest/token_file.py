"""The file that a new key's token is written to. Invariant: it holds a whole token or is as it was; it is never replaced if it has content.

The bytes are reserved before the key is made, in an unfinished file beside it, so that a full disk is found while nothing is lost.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.manifest.document import Document

RESERVED = 32768
"""Bytes that are reserved; a token is shorter."""


class TokenFile:
    """A file that is to hold a token."""

    def __init__(self, document: Document, path: Path, descriptor: int) -> None:
        self._document, self._path, self._descriptor = document, path, descriptor

    def write(self, token: str) -> None:
        """Write the token in one step. CommandError if that fails."""
        try:
            data = f"{token}\n".encode()
            if os.pwrite(self._descriptor, data, 0) != len(data):
                raise OSError(0, "was written in part")
            os.ftruncate(self._descriptor, len(data))
            os.fsync(self._descriptor)
            unfinished = _unfinished(self._path)
            # Another apply that writes the same file has replaced the unfinished one.
            ours = os.path.samestat(os.fstat(self._descriptor), unfinished.lstat())
            if not ours or not is_free(self._path):
                raise FileExistsError(0, "has been written by somebody else")
            unfinished.replace(self._path)
        except OSError as error:
            raise _refusal(self._document, self._path, error) from error


@contextmanager
def reserved(document: Document, path: Path) -> Iterator[TokenFile]:
    """A file with room for a token. CommandError if the file has content or cannot be written."""
    unfinished = _unfinished(path)
    try:
        if not is_free(path):
            raise FileExistsError(0, "File exists")
        # The file of a killed apply is replaced.
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _refusal(document, path, error) from error
    try:
        try:
            if os.write(descriptor, bytes(RESERVED)) != RESERVED:
                raise OSError(0, "there is no room for a token")
            os.fsync(descriptor)
        except OSError as error:
            raise _refusal(document, path, error) from error
        yield TokenFile(document, path, descriptor)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def is_free(path: Path) -> bool:
    """Whether there is no file, or an empty one. OSError if that cannot be seen."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _refusal(document: Document, path: Path, error: OSError) -> CommandError:
    words = f"{document.place('spec.secret_file')}: {path}: {error.strerror}"
    hint = "name a file that does not exist yet or is empty, in a folder with room for it"
    return CommandError(words, hint=hint, code=Exit.USAGE)
