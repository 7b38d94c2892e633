"""The keys that Envoy verifies tokens with: asked of the gateway every few seconds, so that a rotation is noticed.

Invariant: once keys are known there always are some: a gateway that is away leaves the last good ones in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from llamesh.kit.channels import DEADLINE
from llamesh.kit.logs import log
from llamesh.v1.gateway_pb2 import ListSigningKeysRequest
from llamesh.v1.gateway_pb2_grpc import SigningKeyServiceStub

POLL_SECONDS = 3.0


class SigningKeys:
    """Asks, until closed. `on_change(jwks)` is called with the first key set and with every other."""

    def __init__(self, gateway: grpc.aio.Channel, on_change: Callable[[str], None]) -> None:
        self._stub = SigningKeyServiceStub(gateway)
        self._on_change = on_change
        self._version: str | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.create_task(self._ask_for_ever())

    async def close(self) -> None:
        """Stop asking."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask_for_ever(self) -> None:
        while True:
            try:
                # Waits for a gateway that is being started: at the start nothing else is worth doing.
                keys = await self._stub.ListSigningKeys(ListSigningKeysRequest(), timeout=DEADLINE, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                log.warning("signing keys cannot be asked for", code=error.code().name)
            else:
                if keys.version != self._version:
                    self._version = keys.version
                    self._on_change(keys.jwks_json)
                    log.info("signing keys taken", version=keys.version)
            await asyncio.sleep(POLL_SECONDS)
