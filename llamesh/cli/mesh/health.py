"""Reads the mesh's health as clients do: `GET /health` through Envoy."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass

PREFIX = "HEALTH_STATE_"

SECONDS = 5.0
"""Deadline in seconds. It is longer than Envoy's for the gateway (controller/xds/restarts.py), so that the answer names the gateway."""


@dataclass(frozen=True, slots=True)
class Part:
    """Health of one part of the mesh: its name, its state in one word, and why it is not OK."""

    name: str
    state: str
    message: str


@dataclass(frozen=True, slots=True)
class MeshHealth:
    """Health of the whole mesh, and of each part."""

    state: str
    parts: tuple[Part, ...]

    @property
    def ok(self) -> bool:
        """Whether everything works."""
        return self.state == "OK"

    def missing(self) -> list[str]:
        """Describe what does not work, one line for each component."""
        return [f"{part.name}: {part.message or part.state.lower()}" for part in self.parts if part.state != "OK"]


def ask(host: str, port: int, timeout: float = SECONDS, *, tls: bool = False) -> MeshHealth:
    """Return the mesh's health. OSError if nothing answers; state UNREACHABLE if another program answers."""
    connection = _connection(host, port, timeout, tls=tls)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        return MeshHealth("UNREACHABLE", (Part("gateway", "DOWN", f"no HTTP answer ({error})"),))
    finally:
        connection.close()
    try:
        found = json.loads(body)
        parts = tuple(Part(item["name"], _word(item), item.get("message", "")) for item in found.get("components", ()))
        state = found["status"].removeprefix(PREFIX)
    except (ValueError, KeyError, TypeError, AttributeError):
        words = "does not answer" if answer.status in (503, 504) else f"answers {answer.status} {answer.reason}"
        return MeshHealth("UNREACHABLE", (Part("gateway", "DOWN", words),))
    return MeshHealth(state, parts)


def _connection(host: str, port: int, timeout: float, *, tls: bool) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection(host, port, timeout=timeout)
    # Do not verify: the port is local and no secret is sent. A certificate for other names must not look like a mesh that is down.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)


def _word(item: dict[str, str]) -> str:
    return item.get("status", "UNSPECIFIED").removeprefix(PREFIX)
