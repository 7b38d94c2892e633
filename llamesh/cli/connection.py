"""The mesh that a command talks to. gRPC and the contracts are imported here, inside the command, and nowhere before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamesh.client.sync import Client


@contextmanager
def connected() -> Iterator[Client]:
    """A client for LLAMESH_URL or the profile."""
    from llamesh.client.sync import Client

    with Client() as mesh:
        yield mesh
