"""The HTTP endpoint of an engine as its supervising process uses it: probes readiness and idleness, and stops accepting clients."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass

from engine.failure import EngineError, FailureReason
from engine.spec import Address
from llamesh.kit import engine_http
from llamesh.kit.occupancy import METRICS_PATH, Counters, client_connections, is_busy
from llamesh.names import hidden_socket

_PROBE_SECONDS = 2.0


class Health(enum.Enum):
    """Result of GET /health."""

    REFUSED = "not listening"
    LOADING = "loading the model"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """llama.cpp's HTTP server at an address."""

    address: Address
    api_key: str = ""

    async def health(self) -> Health:
        """Request /health, which needs no key. A missing or slow server is a result, not an exception."""
        try:
            status, _ = await self._get("/health")
        except TimeoutError:
            return Health.LOADING
        except OSError:
            return Health.REFUSED
        return Health.READY if status == 200 else Health.LOADING

    async def busy(self, connections: Callable[[], int | None]) -> bool:
        """Return whether a request runs or a client is connected: see `llamesh.kit.occupancy`.

        `connections` is called after this method's own request has ended. A server that is too busy to answer is busy; a dead one is not.
        """
        try:
            _, body = await self._get(METRICS_PATH)
            requests = Counters.read(body).requests
        except TimeoutError:
            return True
        except (OSError, ValueError):
            requests = 0
        return is_busy(requests, connections())

    async def serves(self, pid: int) -> bool:
        """Return whether process `pid` answers requests: a client is connected to it, or /health reports that it is ready."""
        return bool(self.clients(pid)) or await self.health() is Health.READY

    async def speculates(self) -> bool:
        """Return whether the draft model is used. True if the server does not report it."""
        try:
            _, body = await self._get("/slots")
            return all(slot["speculative"] for slot in json.loads(body))
        except (TimeoutError, OSError, ValueError, KeyError, TypeError):
            return True

    def claim_path(self) -> None:
        """Free a Unix socket's path by removing the socket that a killed engine left. Raises EngineError(ADDRESS_IN_USE) if one listens."""
        path = self.address.socket
        if path is None:
            return
        with socket.socket(socket.AF_UNIX) as trial:
            try:
                trial.connect(str(path))
            except FileNotFoundError:
                return
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                return
            except OSError as error:
                raise EngineError(FailureReason.ADDRESS_IN_USE, f"cannot listen on {path}: {error.strerror}") from error
        raise EngineError(FailureReason.ADDRESS_IN_USE, f"another engine listens on {path}")

    def release_path(self) -> None:
        """Remove a Unix socket's path, unless a successor already listens on it."""
        with contextlib.suppress(EngineError):
            self.claim_path()

    def stop_accepting(self) -> Endpoint:
        """Stop accepting clients: rename the Unix socket, which also frees its path for the next engine.

        Return the endpoint under its new name. Over TCP the same endpoint is returned, because a port cannot be renamed: there, clients
        must stop sending first, as on Kubernetes.
        """
        path = self.address.socket
        if path is None or not path.exists():
            return self
        hidden = hidden_socket(path)
        path.rename(hidden)
        return Endpoint(Address(str(hidden)), self.api_key)

    def clients(self, pid: int) -> int | None:
        """Return the number of connections of process `pid` to this endpoint; None if the system does not report it (TCP, or no /proc)."""
        path = self.address.socket
        return None if path is None else client_connections(path, pid)

    async def _get(self, path: str) -> tuple[int, bytes]:
        async with asyncio.timeout(_PROBE_SECONDS):
            if self.address.socket is not None:
                reader, writer = await asyncio.open_unix_connection(self.address.host)
            else:
                reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
            return await engine_http.get(reader, writer, path, self.api_key)
