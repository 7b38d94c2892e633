"""The lock that a command holds while it declares: of two commands of one user on one mesh, the second sees what the first has made.

Invariant: the kernel releases it when its holder ends in any way. If the lock file cannot be created, the command continues without it.
Commands of several users or machines share no lock. `apply` then lists the name of an object after it has created it, and the later of
two commands removes its own object and fails; two `run` commands may each declare a server.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llamesh.cli.output import text
from llamesh.cli.printing import note
from llamesh.locations import expanded
from llamesh.locks import open_file


def applied_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder in which this user's commands record the objects that they declared."""
    base = environment.get("XDG_STATE_HOME")
    return (Path(base) if base else expanded("~/.local/state", "XDG_STATE_HOME")) / "llamesh" / "applied"


@contextmanager
def declaring(url: str, what: str, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Hold the lock: wait until no other command of this user declares on this mesh, and keep later ones waiting."""
    folder = applied_directory(environment)
    path = folder / (hashlib.sha256(f"{url}\n{what}".encode()).hexdigest()[:32] + ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = open_file(path)
    except OSError:
        yield
        return
    try:
        _take(descriptor, f"waiting for another `llamesh {what}` of this user at {url}")
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, words: str) -> None:
    try:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(text(words))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):  # a system or a file system without flock
        return
