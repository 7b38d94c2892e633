"""The file that a new key's token is written to.

Invariant: it holds a whole token or is as it was. It is replaced only if it is empty or holds nothing but the token of a key that has
ended for ever. The bytes are reserved before the key is made, in an unfinished file beside it, so that a full disk is found while
nothing is lost.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from llamesh.cli.bounded_file import read_bounded
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.manifest.document import Document
from llamesh.cli.manifest.references import token_path
from llamesh.cli.token_claims import end_of, key_id_of
from llamesh.v1 import contract_pb2

_ENDED = {contract_pb2.KEY_STATE_REVOKED, contract_pb2.KEY_STATE_EXPIRED, contract_pb2.KEY_STATE_OWNER_REMOVED}
"""States that a key never leaves. A key of a disabled owner works again once the owner is enabled."""
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+\n?", re.ASCII)
RESERVED = 32768
"""Bytes that are reserved; a token is shorter."""


class TokenFile:
    """A file that is to hold a token."""

    def __init__(self, document: Document, path: Path, descriptor: int, has_ended: Callable[[str], bool]) -> None:
        self._document, self._path, self._descriptor, self._has_ended = document, path, descriptor, has_ended

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
            if not ours or not _is_replaceable(self._path, self._has_ended):
                raise FileExistsError(0, "has been written by somebody else")
            unfinished.replace(self._path)
        except OSError as error:
            raise _refusal(self._document, self._path, error) from error


@contextmanager
def reserved(document: Document, has_ended: Callable[[str], bool]) -> Iterator[TokenFile]:
    """A file with room for a token. CommandError if the file has content that must stay, or cannot be written."""
    path = token_path(document)
    unfinished = _unfinished(path)
    try:
        if not _is_replaceable(path, has_ended):
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
        yield TokenFile(document, path, descriptor, has_ended)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def check(document: Document, has_ended: Callable[[str], bool]) -> None:
    """CommandError if a token cannot be written to the file of a document. Writes nothing."""
    path = token_path(document)
    try:
        if not _is_replaceable(path, has_ended):
            raise FileExistsError(0, "File exists")
        if not path.parent.is_dir():
            raise NotADirectoryError(0, "its folder does not exist")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(0, "its folder cannot be written")
    except OSError as error:
        raise _refusal(document, path, error) from error


def ended_tokens(keys: Iterable[contract_pb2.Key], now: datetime | None = None) -> Callable[[str], bool]:
    """A function that says of a token whether its key can never work again: by the mesh's list, or because its time is over.

    The signature is not verified: a token that only claims to be such a key is worth nothing either.
    """
    ended = {key.key_id for key in keys if key.state in _ENDED}

    def has_ended(token: str) -> bool:
        end = end_of(token)
        over = end is not None and end < (now or datetime.now(UTC))
        return bool(key_id := key_id_of(token)) and (key_id in ended or over)

    return has_ended


def holds_token(path: Path, key_id: str) -> bool:
    """Whether a file may hold the token of a key: it has content, and not the token of another key. OSError if it cannot be read."""
    if _is_empty(path):
        return False
    return key_id_of(_content(path)) in {"", key_id}


def _is_replaceable(path: Path, has_ended: Callable[[str], bool]) -> bool:
    """Whether there is no file, an empty one, or one that holds only the token of an ended key. OSError if that cannot be seen."""
    return _is_empty(path) or (not path.is_symlink() and has_ended(_content(path)))


def _is_empty(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def _content(path: Path) -> str:
    """The token that a file holds, alone on one line; empty if there is anything else in it."""
    try:
        found = read_bounded(path, RESERVED).decode("ascii")
    except (CommandError, UnicodeDecodeError):
        return ""
    return found.removesuffix("\n") if _TOKEN.fullmatch(found) else ""


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _refusal(document: Document, path: Path, error: OSError) -> CommandError:
    words = f"{document.place('spec.secret_file')}: {path}: {error.strerror}"
    hint = (
        "name a file that does not exist yet, is empty or holds the token of an ended key, in a folder with room for it"
    )
    return CommandError(words, hint=hint, code=Exit.USAGE)
