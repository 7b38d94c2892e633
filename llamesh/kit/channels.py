"""Channels to the other services of the mesh, and the options of every call through them.

    stub = contract_pb2_grpc.ContractServiceStub(channel(settings, "contract", caller="gateway"))
    with asking("contract"):
        answer = await stub.Check(request, **call_options())

Invariant: each call has a deadline, carries the caller's identity and the request id, and waits while the other service restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import grpc

from llamesh.kit.calls import REQUEST_ID_HEADER, current_request_id
from llamesh.kit.config import Settings
from llamesh.kit.errors import raise_from_rpc
from llamesh.kit.identity import current_identity
from llamesh.kit.member_tls import open_member_tls
from llamesh.kit.rotating_channel import RotatingChannel
from llamesh.names import CLAIMS_HEADER

DEADLINE = 10.0
"""Default deadline of a call in seconds, including a restart of the other service."""

START_SECONDS = 10.0
"""Members start in parallel: for these seconds after its own start, a member treats another one that has not answered as starting."""

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Maximum size of a message; no method transfers bulk data."""

MAX_METADATA_BYTES = 128 * 1024
"""Maximum size of a call's metadata: all headers that Envoy accepts (60 KiB), and the claims of the token again."""

KEEPALIVE: Sequence[tuple[str, int]] = (("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000))

SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    *KEEPALIVE,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    ("grpc.so_reuseport", 0),
)

CLIENT_OPTIONS: Sequence[tuple[str, int | str]] = (
    *KEEPALIVE,
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, this option also limits how long one connection attempt may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.default_authority", "llamesh"),
)
"""gRPC's transparent retries stay on: they save calls that a restarting service has not seen. They are safe only on a channel that is kept
(ADR 48)."""


def channel(settings: Settings, service: str, caller: str) -> grpc.aio.Channel:
    """Open a channel to another service: by its Unix socket, or over TCP, as the member `caller`, if the settings have its address.

    Raises StartRefused if TCP is to be used and the certificate of the caller cannot be.
    """
    address = settings.member_addresses.get(service, "")
    tls = open_member_tls(settings, caller) if address and caller != service else None
    if tls is None:
        return grpc.aio.insecure_channel(f"unix:{settings.socket(service)}", options=list(CLIENT_OPTIONS))
    return RotatingChannel(tls, address, service, list(CLIENT_OPTIONS))


def forwarded_metadata() -> list[tuple[str, str]]:
    """Return the metadata that forwards the caller's identity and the request id."""
    metadata = [(REQUEST_ID_HEADER, current_request_id.get())] if current_request_id.get() else []
    identity = current_identity.get()
    if identity is not None:
        metadata.append((CLAIMS_HEADER, identity.header))
    return metadata


class CallOptions(TypedDict):
    """Keyword arguments of a call."""

    timeout: float
    metadata: list[tuple[str, str]]
    wait_for_ready: bool


def call_options(deadline: float = DEADLINE, *, waits: bool = True) -> CallOptions:
    """Return the options of a call that may take `deadline` seconds in all.

    `waits`: also for a service that is away. A call with a long deadline should not: a short call before it waits while the service
    restarts, and notices that it is away.
    """
    return {"timeout": deadline, "metadata": forwarded_metadata(), "wait_for_ready": waits}


@contextmanager
def asking(component: str) -> Iterator[None]:
    """Raise errors of the other service as the same MeshError here, and COMPONENT_UNAVAILABLE if it does not answer."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error, component)
