"""Paths of a mesh on this machine, for its processes and for the command.

Imports the standard library only, and its slow modules only if they are needed: every command waits for this one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

MAX_UNIX_SOCKET_PATH = 107
"""Maximum length of a Unix socket's path on Linux, in bytes (sys/un.h)."""

MAX_SOCKET_NAME = len("/engines/00000000-00.sock")
"""Length of the longest name below the run directory."""

DEFAULT_HOME = Path("~/.llamesh")


def expanded(path: str | Path, named: str = "") -> Path:
    """Return a path with the home directory for ~ and ~user. ValueError, which begins with the argument's name, if there is none."""
    if not str(path).startswith("~"):
        # A Path would take ./~x for ~x.
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        place = f"{named}: " if named else ""
        raise ValueError(f"{place}the home directory {Path(path).parts[0]} is not known") from error


def home_directory(environment: Mapping[str, str]) -> Path:
    """Return LLAMESH_HOME as an absolute path: the directory of all data of this machine."""
    return expanded(environment.get("LLAMESH_HOME") or DEFAULT_HOME, "LLAMESH_HOME").absolute()


def run_directory(home: Path, environment: Mapping[str, str]) -> Path:
    """Return the directory of sockets: LLAMESH_HOME/run, or a short path if that exceeds the limit of Unix sockets."""
    usual = home / "run"
    if len(os.fsencode(usual)) + MAX_SOCKET_NAME <= MAX_UNIX_SOCKET_PATH:
        return usual
    import tempfile

    name = f"llamesh-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    return Path(environment.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / name


def handed_over_directory(home: Path) -> Path:
    """Return the directory below LLAMESH_HOME/import into which the command links files for the mesh to fetch."""
    return home / "import" / "handed-over"


def parts_directory(home: Path) -> Path:
    """Return the directory of the links to the parts of models."""
    return home / "parts"


def variants_directory(home: Path) -> Path:
    """Return the directory in which the Quant service publishes if no S3 server is set."""
    return home / "llm-models"


def make_private(directory: Path) -> Path:
    """Create a directory that only this user can enter; PermissionError if another user owns it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    owner = directory.stat().st_uid
    if owner != os.getuid():
        raise PermissionError(
            f"{directory} belongs to user {owner}: remove it, or set LLAMESH_HOME to another directory"
        )
    directory.chmod(0o700)
    return directory
