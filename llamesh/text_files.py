"""Reads a file of text that a person edits.

Invariant: a file that is no text is refused with its name and line, in the same words by every reader.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path

from llamesh.regular_files import NotRegularError, open_regular

MAX_BYTES = 1 << 18
"""Maximum bytes of a file."""
MAX_LINE_BYTES = 1 << 14
"""Maximum bytes of a line. The parser of settings files takes quadratic time for a line of blanks: about a second for one of this length.
Credentials of several registries or S3 servers need some KiB."""


class NotTextError(Exception):
    """The file holds no text that can be used; the message says where, and what to do."""


def read_text(path: Path) -> str:
    """Return the content of a file in UTF-8, without a byte order mark, which some editors write. NotTextError, OSError."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1).removeprefix(BOM_UTF8)
    except NotRegularError as error:
        raise NotTextError(str(error)) from error
    if len(content) > MAX_BYTES:
        raise NotTextError(f"{path} has more than {MAX_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise NotTextError(
            f"line {_line(content, error.start)} of {path} is not UTF-8: save the file as UTF-8"
        ) from error
    for number, line in enumerate(content.splitlines(), 1):
        if len(line) > MAX_LINE_BYTES:
            raise NotTextError(f"line {number} of {path} has more than {MAX_LINE_BYTES} bytes: shorten it")
    if (place := content.find(b"\0")) >= 0:
        raise NotTextError(f"line {_line(content, place)} of {path} holds a NUL byte: save the file as UTF-8")
    return text


def _line(content: bytes, place: int) -> int:
    return content.count(b"\n", 0, place) + 1
