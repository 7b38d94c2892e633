"""The processes of a mesh on one machine; their entry points are those of the containers."""

from __future__ import annotations

import os
import sys

from llamesh.cli.mesh import envoy, renewal
from llamesh.cli.mesh.liveness import EnvoyProbe, MemberProbe
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.cli.mesh.supervisor import Component

_MODULES = {
    "controller": "controller",
    "gateway": "services.gateway",
    "contract": "services.contract",
    "download": "services.download",
}
_QUANT = {"quant": "services.quant"}
"""The optional member."""
_SPARE_SECONDS = 5.0
"""Seconds that a process needs to end after its drain."""


def components(settings: MeshSettings) -> list[Component]:
    """Return all components. Envoy ends first, so that no new request arrives, then the controller with its engines, then the services.

    EnvoyNotFoundError if there is no Envoy.
    """
    patience = settings.drain_seconds + _SPARE_SECONDS
    members = [
        # -P keeps the working directory out of the import path: a folder named `services` there is not ours.
        Component(
            name,
            (sys.executable, "-P", "-m", module),
            stage=1 if name == "controller" else 2,
            stop_seconds=patience,
            probe=MemberProbe(settings.run_dir / f"{name}.sock"),
        )
        for name, module in (_MODULES | (_QUANT if settings.quant else {})).items()
    ]
    front = Component(
        "envoy",
        tuple(envoy.command(settings, os.getpid())),
        stage=0,
        stop_seconds=_SPARE_SECONDS,
        drain=lambda: envoy.drain(settings),
        prepare=lambda: (renewal.hand_over(settings), envoy.write_bootstrap(settings)),
        probe=EnvoyProbe(settings),
    )
    return [*members, front]
