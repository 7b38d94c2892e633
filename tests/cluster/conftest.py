"""The whole mesh of tests/mesh, for tests that speak to it with programs built from modules, and the image of the Dockerfile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.containers import Containers
from tests.mesh.conftest import mesh, served
from tests.mesh.running import ROOT

__all__ = ["containers", "mesh", "served"]


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Containers, with the image built. It takes a minute, so all tests of the image share it."""
    dist = tmp_path_factory.mktemp("dist")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", dist, ROOT]
    subprocess.run(wheel, check=True, timeout=300)
    found = Containers()
    try:
        found.make_base()
        found.build(next(dist.glob("llamesh-*.whl")))
        yield found
    finally:
        found.close()
