"""One whole mesh for all tests that do not break it, with one server of the sentence model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.mesh.running import RunningMesh, running_mesh

MODEL = "sentence.gguf"


@dataclass(frozen=True)
class Served:
    """A mesh with a server that is ready."""

    mesh: RunningMesh
    server_uuid: str
    model: str = MODEL

    def path(self, rest: str) -> str:
        """Address of a path below the server's own."""
        return self.mesh.url("inference", f"/{self.server_uuid}{rest}")


@pytest.fixture(scope="session")
def mesh() -> Iterator[RunningMesh]:
    """A mesh that is up, with the model `sentence` in its catalogue."""
    with running_mesh() as running:
        running.add_model("sentence", MODEL)
        yield running


@pytest.fixture(scope="session")
def served(mesh: RunningMesh) -> Served:
    """A ready server of the sentence model with 4 slots."""
    server = mesh.serve("sentence", model_name=MODEL, runtime_params="--ctx-size 4096 --parallel 4")
    return Served(mesh, server["server_uuid"])
