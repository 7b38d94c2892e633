"""Reports the progress of a mesh's start: what is not ready, and what its members wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from llamesh import waiting
from llamesh.cli.mesh import health, member_health
from llamesh.cli.mesh.leftovers import lives
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.names import CONTROLLER, ENVOY
from llamesh.waiting import Wait

READY_SECONDS = 60.0
"""Seconds after which a start is reported as slow; it goes on."""

WAITING_SECONDS = 2.0
"""Seconds before the first check for waits, and between checks; most waits at a start are shorter."""


class Waits:
    """Reports what members wait for, each wait once until it has ended."""

    def __init__(
        self, run_dir: Path, began: float, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run_dir = run_dir
        self._next_look = began + WAITING_SECONDS
        self._say = say
        self._clock = clock
        self._said: set[Wait] = set()

    def look(self) -> None:
        """Report new waits; checks at most every WAITING_SECONDS."""
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + WAITING_SECONDS
        found = waiting.waits(self._run_dir)
        for wait, members in found.items():
            if wait not in self._said:
                self._say(f"{waiting.sentence(wait, members)}\n    -> {wait.remedy}")
        self._said = set(found)


def lacking_of(settings: MeshSettings) -> list[str]:
    """Describe why the mesh is not ready, one line for each cause; empty if it is ready.

    If members are elsewhere, what runs here counts: each member by its own health, and Envoy if it listens.
    """
    if settings.only:
        lacking = [f"{name} {words}" for name, words in member_health.missing(settings).items()]
        if settings.runs(ENVOY):
            lacking += _silence_of_envoy(settings)
        return lacking and (_causes(settings) or lacking)
    try:
        found = health.ask(settings.host, settings.gateway_port, tls=settings.tls)
    except OSError as error:
        return _causes(settings) or [_no_answer(settings, error)]
    return found.missing() or ([] if found.ok else [f"health: {found.state}"])


def _silence_of_envoy(settings: MeshSettings) -> list[str]:
    """Describe why Envoy does not listen; empty if it answers anything, because the gateway behind it may be elsewhere."""
    try:
        health.ask(settings.host, settings.gateway_port, tls=settings.tls)
    except OSError as error:
        controller = settings.member_addresses.get(CONTROLLER)
        origin = "" if settings.runs(CONTROLLER) else f"; its configuration comes from the controller at {controller}"
        return [_no_answer(settings, error) + origin]
    return []


def _no_answer(settings: MeshSettings, error: OSError) -> str:
    return f"Envoy does not answer on port {settings.gateway_port} ({error.strerror or error})"


def _causes(settings: MeshSettings) -> list[str]:
    """Describe which processes have ended, and what members wait for."""
    waits = waiting.waits(settings.run_dir).items()
    ended = [f"{name} ended: {life.last_output}" for name, life in lives(settings.run_dir).items() if life.last_output]
    return [*ended, *(f"{waiting.sentence(wait, members)}: {wait.remedy}" for wait, members in waits)]
