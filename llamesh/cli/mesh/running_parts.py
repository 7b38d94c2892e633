"""Checks of the parts of a running mesh for `llamesh doctor`: what `GET /health` says of them, or they themselves if Envoy is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from llamesh import waiting
from llamesh.cli.mesh import health, member_health
from llamesh.cli.mesh.findings import Finding, State
from llamesh.cli.mesh.leftovers import Life, lives
from llamesh.cli.mesh.settings import MeshSettings

LOGS = {"store": "download", "database": "gateway"}
"""Member whose log covers a component of health that is not a process of the mesh."""


def components(settings: MeshSettings, url: str) -> Iterator[Finding]:
    """Check each component of the mesh that runs at this address, and report what its members wait for."""
    address = urlsplit(url)
    remembered = lives(settings.run_dir)
    yield from (waits := list(_waiting(settings)))
    try:
        host, port = address.hostname or settings.host, address.port or settings.gateway_port
        found = health.ask(host, port, tls=address.scheme == "https")
    except OSError as error:
        for name, life in remembered.items():
            if life.last_output:
                yield Finding(name, "problem", f"it ended: {life.last_output}" + restarts(life), f"llamesh logs {name}")
        fix = "it answers when that is over" if waits else f"see {settings.logs / 'envoy.log'} and `llamesh logs`"
        yield Finding("front door", "problem", f"{url} does not answer ({error.strerror or error})", fix)
        return
    for part in found.parts:
        state: State = {"OK": "ok", "DEGRADED": "warning"}.get(part.state, "problem")  # type: ignore[assignment]
        fix = "" if state == "ok" else f"llamesh logs {LOGS.get(part.name, part.name)}"
        yield Finding(part.name, state, (part.message or part.state.lower()) + restarts(remembered.get(part.name)), fix)


def members_here(settings: MeshSettings) -> Iterator[Finding]:
    """Check the members that run here, by their own health, if Envoy is elsewhere."""
    remembered, missing = lives(settings.run_dir), member_health.missing(settings)
    yield from _waiting(settings)
    for name in sorted(settings.only):
        life = remembered.get(name)
        words = missing.get(name, "")
        if words and life and life.last_output:
            words = f"it ended: {life.last_output}"
        yield Finding(
            name,
            "problem" if words else "ok",
            (words or "ok") + restarts(life),
            f"llamesh logs {name}" if words else "",
        )


def _waiting(settings: MeshSettings) -> Iterator[Finding]:
    for wait, waiters in waiting.waits(settings.run_dir).items():
        yield Finding("waiting", "problem", waiting.sentence(wait, waiters), wait.remedy)


def restarts(life: Life | None) -> str:
    """Describe the restarts of a component; empty if there were none."""
    if life is None or not life.restarts:
        return ""
    silent = f", {life.silences} times because it did not answer" if life.silences else ""
    return f" (restarted {life.restarts} times{silent})"
