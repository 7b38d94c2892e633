"""The probe port of a member: TCP without TLS, with nothing but the health of this one process, for the kubelet.

The kubelet's probes speak no mutual TLS, and a program that it runs in the pod instead costs an interpreter for each probe (ADR 49). The
port is served by the member's event loop, from before its composition root runs until after that has returned: so a member that waits for
its database, migrates it or drains is live and not ready, and one whose event loop hangs does not answer.

Invariant: a caller learns whether the member is live and whether it is ready, and nothing else. Connections, calls and messages are
bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from llamesh.kit import health_names
from llamesh.kit.errors import StartRefused
from llamesh.kit.logs import log

READY = ""
"""The service whose health is the readiness of the member: what the member says of itself on its socket, and not while it drains."""
LIVE = "live"
"""The service that is SERVING as long as the event loop runs."""
MAX_CONNECTIONS = 64
"""Maximum number of open connections; the kubelet has one for each probe, for a moment."""
MAX_CALLS = 16
"""Maximum number of calls at the same time."""
MAX_MESSAGE_BYTES = 1024
"""Maximum size of a request, which has the name of one service."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 5_000),
    # Connections that probe nothing must not take the place of the kubelet's.
    ("grpc.max_connection_idle_ms", 10_000),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
)

_Response = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]


class ProbePort:
    """Serves probes at an address, host:port, within an `async with` block; nothing if the address is empty."""

    def __init__(self, address: str, is_ready: Callable[[], bool]) -> None:
        self._address = address
        self._is_ready = is_ready
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        """Start listening. Raises StartRefused if this machine cannot listen there."""
        if self._address:
            server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
            check = grpc.unary_unary_rpc_method_handler(self._check, _service, _Response.SerializeToString)
            handlers = grpc.method_handlers_generic_handler(health_names.SERVICE, {"Check": check})
            server.add_generic_rpc_handlers((handlers,))
            try:
                server.add_insecure_port(self._address)
            except RuntimeError as error:
                raise StartRefused(
                    f"cannot listen for probes at {self._address}: another program, most likely another member, has the port;"
                    " LLAMESH_PROBE_PORT is for one member in a pod of its own: unset it, or choose another port"
                ) from error
            await server.start()
            self._server = server
            log.info("listening for probes", address=self._address)
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop listening."""
        if self._server:
            await self._server.stop(None)

    async def _check(self, service: str | None, context: _Context) -> health_pb2.HealthCheckResponse:
        if service not in (READY, LIVE):
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"ask for no name, which is readiness, or for {LIVE}, which is liveness"
            )
        well = service == LIVE or self._is_ready()
        return _Response(status=_Response.SERVING if well else _Response.NOT_SERVING)


def _service(data: bytes) -> str | None:
    """Decode the service that a request asks for; None for bytes that are no such request."""
    try:
        request = health_pb2.HealthCheckRequest.FromString(data)
    except DecodeError:
        return None
    return str(request.service)
