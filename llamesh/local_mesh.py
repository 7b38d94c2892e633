"""Where the mesh of this machine answers: its supervisor writes it into the lock file of LLAMESH_HOME.

Invariant: what the file says is only believed while the lock is held, so the addresses of a mesh that ended in any way are nobody's.
Nothing but the standard library is imported: every command asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamesh import locks
from llamesh.locations import home_directory


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a mesh answers, as URLs without a path."""

    management: str
    inference: str


def lock_file(home: Path) -> Path:
    """The file whose lock the supervisor of a home holds."""
    return home / "mesh.lock"


def running_here(environment: Mapping[str, str]) -> Addresses | None:
    """The addresses of the mesh that runs in LLAMESH_HOME; None where none runs, or none that this user may know of."""
    try:
        descriptor = os.open(lock_file(home_directory(environment)), os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home directory
        return None
    try:
        found = locks.read_holder(descriptor) if locks.is_held(descriptor) else {}
        return Addresses(str(found["management"]), str(found["inference"]))
    except (ImportError, OSError, KeyError):  # ImportError: a system without such locks, thus without a mesh
        return None
    finally:
        os.close(descriptor)
