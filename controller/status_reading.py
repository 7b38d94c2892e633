"""Reads the status of a server as `controller.status` builds it. No I/O."""

from __future__ import annotations

from datetime import datetime

from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server

CONDITION_TRUE = server_pb2.CONDITION_STATUS_TRUE


def stopped_status(last: Server, now: datetime) -> Server:
    """Return the final status of a removed server."""
    server = Server()
    server.CopyFrom(last)
    server.state = server_pb2.SERVER_STATE_STOPPED
    server.ready_replicas = 0
    del server.replica_statuses[:]
    del server.conditions[:]
    server.update_time.FromDatetime(now)
    return server


def ready_reason(server: Server) -> str:
    """Return the reason of the condition Ready: why not every engine answers."""
    return next((condition.reason for condition in server.conditions if condition.type == "Ready"), "")


def is_routable(server: Server, generation: int) -> bool:
    """Return whether Envoy routes requests for a server as it was declared at this generation or later."""
    routable = any(
        condition.type == "Routable" and condition.status == CONDITION_TRUE for condition in server.conditions
    )
    return routable and server.observed_generation >= generation


def why_not_ready(server: Server) -> str:
    """Return why not every engine answers, as text for people."""
    return next((condition.message for condition in server.conditions if condition.type == "Ready"), "")
