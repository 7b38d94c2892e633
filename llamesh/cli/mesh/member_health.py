"""Asks the members that run on this machine for their health on their Unix sockets, where Envoy, and so `GET /health`, is elsewhere.

Invariant: a member counts as ready only if it says so itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from llamesh.cli.mesh.settings import MeshSettings
from llamesh.names import ENVOY

CHECK = "/grpc.health.v1.Health/Check"
SECONDS = 5.0
"""Deadline in seconds of one member's answer."""
_SERVING = b"\x08\x01"
"""HealthCheckResponse with the status SERVING."""
PROBE_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
"""Options of a channel for one probe. gRPC's transparent retries take gigabytes in seconds if a member ends just when a new connection
arrives, and probes need none."""


def missing(settings: MeshSettings) -> dict[str, str]:
    """Return why members that run here are not ready, by name; empty if all are. Envoy is not asked."""
    here = [name for name in settings.members if name != ENVOY and settings.runs(name)]
    found = {name: _problem(settings.run_dir / f"{name}.sock") for name in here}
    return {name: words for name, words in found.items() if words}


def _problem(socket: Path) -> str:
    prepare_grpc()
    import grpc

    # A new connection each time: one that is kept would not notice that the socket's file was replaced.
    with grpc.insecure_channel(f"unix:{socket}", options=PROBE_OPTIONS) as channel:
        check = channel.unary_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)
        try:
            # An empty HealthCheckRequest has no bytes.
            answer = check(b"", timeout=SECONDS)
        except grpc.RpcError:
            return "does not answer"
    return "" if answer == _SERVING else "is starting or stopping"


def prepare_grpc() -> None:
    """Set up gRPC before it is imported into a process that starts others: its fork handlers sometimes abort such a child."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
