"""Reads the text that an importance matrix is measured with."""

from __future__ import annotations

from pathlib import Path

from llamesh.cli.bounded_file import read_bounded
from llamesh.cli.failure import CommandError, Exit

MAX_CALIBRATION_BYTES = 2**19
"""Maximum size of the text in bytes, that of the contract."""


def calibration_text(path: Path) -> str:
    """Return the text of `--calibration`. CommandError if it cannot be used."""
    try:
        words = read_bounded(path, MAX_CALIBRATION_BYTES).decode()
    except UnicodeDecodeError:
        raise CommandError(f"{path} is no text in UTF-8", hint="--calibration TEXTFILE", code=Exit.USAGE) from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", hint="--calibration TEXTFILE", code=Exit.NOT_FOUND) from None
    if not words.strip():
        raise CommandError(f"{path} is empty", hint="--calibration TEXTFILE", code=Exit.USAGE)
    return words
