"""Addresses of the mesh that runs on this machine. Its supervisor writes them into the lock file of LLAMESH_HOME.

Invariant: the addresses count only while the lock is held, so those of a mesh that has ended in any way are ignored. Imports the standard
library only, because every command uses it.
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
    """URLs of a mesh, without a path; empty if its Envoy is on another machine."""

    management: str
    inference: str


def lock_file(home: Path) -> Path:
    """Return the file whose lock the supervisor of a home holds."""
    return home / "mesh.lock"


def running_here(environment: Mapping[str, str]) -> Addresses | None:
    """Return the addresses of the mesh that runs in LLAMESH_HOME; None if none runs with its Envoy here, or this user may not read its
    lock file."""
    try:
        descriptor = os.open(lock_file(home_directory(environment)), os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home directory
        return None
    try:
        found = locks.read_holder(descriptor) if locks.is_held(descriptor) else {}
        return Addresses(str(found["management"]), str(found["inference"])) if found["management"] else None
    except (ImportError, OSError, KeyError):  # ImportError: a system without flock cannot run a mesh
        return None
    finally:
        os.close(descriptor)
