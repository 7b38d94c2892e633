"""Files of a home that the first process creates and all others read: its id (`home-id`) and its secret (`secrets/jwt_secret`).

Invariant: a file that is there is never replaced, because leases know a home by its id, and a new secret ends all tokens. One that cannot
be used is refused with the remedy, at a start and by `llamesh doctor`. Only a file that is damaged has a remedy that removes it: one that
cannot be read may be whole.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamesh.locations import make_private
from llamesh.private_files import create_private
from llamesh.regular_files import NotRegularError, open_regular

MIN_SECRET_LENGTH = 32
MAX_FILE_BYTES = 64 << 10
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


class HomeFileError(Exception):
    """A file that is there and cannot be used; `remedy` is the instruction for a person."""

    def __init__(self, words: str, remedy: str) -> None:
        super().__init__(words)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class HomeFile:
    """One file. `content` says what it must hold, and `is_whole` whether a text is that."""

    path: Path
    content: str
    is_whole: Callable[[str], bool]
    remedy: str

    def read(self) -> str:
        """Return the text; empty if there is no file. Raises HomeFileError."""
        try:
            with open_regular(self.path) as file:
                text = file.read(MAX_FILE_BYTES).decode(errors="replace").strip()
        except FileNotFoundError:
            if not self.path.is_symlink():
                return ""
            raise HomeFileError(f"{self.path} is a link that leads nowhere", self.remedy) from None
        except NotRegularError as error:
            raise HomeFileError(str(error), self.remedy) from error
        except OSError as error:
            raise HomeFileError(f"{self.path} cannot be read: {error.strerror}", self._remedy_of(error)) from error
        if not self.is_whole(text):
            raise HomeFileError(f"{self.path} is damaged: it must hold {self.content}", self.remedy)
        return text

    def _remedy_of(self, error: OSError) -> str:
        if error.errno == errno.ELOOP:
            return self.remedy
        if isinstance(error, PermissionError):
            return f"let user {os.geteuid()} read it, and enter its folders; or set LLAMESH_HOME to your own folder"
        return f"see that {self.path.parent} is a folder on a disk that works; or set LLAMESH_HOME to another folder"

    def read_or_create(self, new: Callable[[], str]) -> str:
        """Return the text; the first process creates it, readable by its owner only. Raises HomeFileError, OSError."""
        make_private(self.path.parent)
        while not (text := self.read()):
            create_private(self.path, new().encode())
        return text


def home_id(home: Path) -> HomeFile:
    """The id of a home. It is in no backup, because a restored home is another one."""
    remedy = f"remove it (rm -r {home / 'home-id'}): the next start makes a new one"
    return HomeFile(home / "home-id", "letters, digits and hyphens", lambda text: bool(_ID.fullmatch(text)), remedy)


def secret(home: Path) -> HomeFile:
    """The secret of a home. One that is empty, cut or filled with zeros is refused: earlier releases did not sync it, so a power failure
    could damage it, and anyone can sign tokens with a secret that is known."""
    remedy = (
        "put it back from a backup, set JWT_SECRET to the former secret, or delete the file: then a new secret is created and all tokens"
        " and keys end"
    )
    content = f"a text of at least {MIN_SECRET_LENGTH} characters"
    return HomeFile(home / "secrets" / "jwt_secret", content, _is_secret, remedy)


def _is_secret(text: str) -> bool:
    return len(text) >= MIN_SECRET_LENGTH and "\0" not in text and "\N{REPLACEMENT CHARACTER}" not in text
