"""Reads a regular file of the user, up to a length."""

from __future__ import annotations

from pathlib import Path

from llamesh.cli.failure import CommandError, Exit
from llamesh.regular_files import NotRegularError, open_regular


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content. CommandError if the file is not regular or longer than `most` bytes; OSError if it cannot be read."""
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except NotRegularError as error:
        raise CommandError(str(error), code=Exit.USAGE) from error
    if len(content) > most:
        raise CommandError(f"{path} is too long: at most {most} bytes are read", code=Exit.USAGE)
    return content
