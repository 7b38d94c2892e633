"""Channels to the other services of the mesh, and the options of every call through them.

    stub = contract_pb2_grpc.ContractServiceStub(channel(settings, "contract"))
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
from llamesh.names import CLAIMS_HEADER

DEADLINE = 10.0
"""Default deadline of a call in seconds, a restart of the other service included."""

OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, this option also limits how long one connection attempt may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.default_authority", "llamesh"),
)


def channel(settings: Settings, service: str) -> grpc.aio.Channel:
    """Open a channel to another service on this machine."""
    return grpc.aio.insecure_channel(f"unix:{settings.socket(service)}", options=list(OPTIONS))


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


def call_options(deadline: float = DEADLINE) -> CallOptions:
    """Return the options of a call that may take `deadline` seconds in all."""
    return {"timeout": deadline, "metadata": forwarded_metadata(), "wait_for_ready": True}


@contextmanager
def asking(component: str) -> Iterator[None]:
    """Raise errors of the other service as the same MeshError here, and COMPONENT_UNAVAILABLE if it does not answer."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error, component)
