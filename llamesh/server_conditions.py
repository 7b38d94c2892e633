"""Reads the conditions in a server's status, for the mesh and its clients. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamesh.v1.server_pb2 import Server

BEING_REMOVED = "Stopping"
"""Reason of the Ready condition of a server that is being removed."""


def is_being_removed(server: Server) -> bool:
    """Return whether a server is being removed, rather than falling asleep. It accepts no new requests, and the removal cannot be
    undone."""
    return any(condition.type == "Ready" and condition.reason == BEING_REMOVED for condition in server.conditions)


def staying(servers: Iterable[Server]) -> list[Server]:
    """Return the servers that are not being removed."""
    return [server for server in servers if not is_being_removed(server)]
