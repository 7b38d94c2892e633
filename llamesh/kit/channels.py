"""Calls to siblings: each carries the caller's identity, the request id and a deadline, and waits out a sibling's restart.

stub = contract_pb2_grpc.ContractServiceStub(channel(settings, "contract"))
with asking("contract"):
    answer = await stub.Check(request, **call_options())
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
"""Seconds a sibling may take for an answer."""

OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    # By its name a pause, in truth also the time that a connection may take to be made: a busy sibling needs some.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.default_authority", "llamesh"),
)


def channel(settings: Settings, service: str) -> grpc.aio.Channel:
    """A channel to a sibling of this machine."""
    return grpc.aio.insecure_channel(f"unix:{settings.socket(service)}", options=list(OPTIONS))


def forwarded_metadata() -> list[tuple[str, str]]:
    """Metadata that takes the caller's identity and the request id along."""
    metadata = [(REQUEST_ID_HEADER, current_request_id.get())] if current_request_id.get() else []
    identity = current_identity.get()
    if identity is not None:
        metadata.append((CLAIMS_HEADER, identity.header))
    return metadata


class CallOptions(TypedDict):
    """What goes with a call besides its request."""

    timeout: float
    metadata: list[tuple[str, str]]
    wait_for_ready: bool


def call_options(deadline: float = DEADLINE) -> CallOptions:
    """Options of a call to a sibling: `deadline` seconds in all, a restart of it included; the caller's identity goes along."""
    return {"timeout": deadline, "metadata": forwarded_metadata(), "wait_for_ready": True}


@contextmanager
def asking(component: str) -> Iterator[None]:
    """Turn a sibling's refusal into the same MeshError here, and its silence into COMPONENT_UNAVAILABLE."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error, component)
