"""Polls the gateway for the keys with which Envoy verifies tokens, so that a key rotation reaches Envoy within seconds.

Invariant: once Envoy has keys, it always has keys: while the gateway is unavailable, the last ones stay in use.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.channels import DEADLINE
from llamesh.kit.logs import log, report_failure
from llamesh.v1.gateway_pb2 import ListSigningKeysRequest
from llamesh.v1.gateway_pb2_grpc import SigningKeyServiceStub

POLL_SECONDS = 3.0
MAX_PAUSE = 10.0
"""Longest pause between attempts, in seconds. The gateway publishes a new key much earlier than it signs with it."""


class SigningKeys:
    """Polls until closed. Calls `on_change(jwks)` with the first key set and with every new one."""

    def __init__(self, gateway: grpc.aio.Channel, on_change: Callable[[str], None]) -> None:
        self._stub = SigningKeyServiceStub(gateway)
        self._on_change = on_change
        self._version: str | None = None
        self._task = BackgroundTask(
            "follow signing keys", self._ask, report_failure, every=POLL_SECONDS, longest=MAX_PAUSE
        )

    def start(self) -> None:
        """Start polling."""
        self._task.start()

    async def close(self) -> None:
        """Stop polling."""
        await self._task.close()

    async def _ask(self) -> None:
        # The call waits for a gateway that is being started, because Envoy cannot be configured without keys.
        keys = await self._stub.ListSigningKeys(ListSigningKeysRequest(), timeout=DEADLINE, wait_for_ready=True)
        if keys.version != self._version:
            self._on_change(keys.jwks_json)
            self._version = keys.version
            log.info("signing keys taken", version=keys.version)
