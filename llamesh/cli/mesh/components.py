"""The processes of a mesh on one machine; their entry points are those of the containers."""

from __future__ import annotations

import os
import sys

from llamesh.cli.mesh import envoy, renewal
from llamesh.cli.mesh.liveness import EnvoyProbe, MemberProbe
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.cli.mesh.supervisor import Component
from llamesh.names import CONTRACT, CONTROLLER, DOWNLOAD, ENVOY, GATEWAY, QUANT

_MODULES = {
    CONTROLLER: "controller",
    GATEWAY: "services.gateway",
    CONTRACT: "services.contract",
    DOWNLOAD: "services.download",
    QUANT: "services.quant",
}
_SPARE_SECONDS = 5.0
"""Seconds that a process needs to end after its drain."""


def components(settings: MeshSettings) -> list[Component]:
    """Return the components that run on this machine. Envoy ends first, so that no new request arrives, then the controller with its
    engines, then the services.

    EnvoyNotFoundError if Envoy is to run here and there is none.
    """
    members = [_member(settings, name) for name in _MODULES if settings.runs(name)]
    return [*members, _envoy(settings)] if settings.runs(ENVOY) else members


def _member(settings: MeshSettings, name: str) -> Component:
    return Component(
        name,
        # -P keeps the working directory out of the import path: a folder named `services` there is not ours.
        (sys.executable, "-P", "-m", _MODULES[name]),
        stage=1 if name == CONTROLLER else 2,
        stop_seconds=settings.drain_seconds + _SPARE_SECONDS,
        probe=MemberProbe(settings.run_dir / f"{name}.sock"),
    )


def _envoy(settings: MeshSettings) -> Component:
    return Component(
        ENVOY,
        tuple(envoy.command(settings, os.getpid())),
        stage=0,
        stop_seconds=_SPARE_SECONDS,
        drain=lambda: envoy.drain(settings),
        prepare=lambda: (renewal.hand_over(settings), envoy.write_bootstrap(settings)),
        probe=EnvoyProbe(settings),
        # The controller, which may be on another machine, names Envoy's files relative to Envoy's home.
        folder=settings.home,
    )
