"""One whole mesh for all tests that do not break it, with one server of the sentence model; and front doors without a mesh behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.mesh.front_door import FrontDoor, front_door
from tests.mesh.inference_door import inference_door
from tests.mesh.management_door import Mesh, management_door
from tests.mesh.running import RunningMesh, running_mesh

MODEL = "sentence.gguf"
SECONDS = 300
"""The limit of a test here, its fixtures included: many start whole meshes, which a busy machine delays."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests of this folder their limit, unless they have one of their own."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS))


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


@pytest.fixture
async def door(request: pytest.FixtureRequest) -> AsyncIterator[FrontDoor]:
    """An inference listener without servers, for one test, which may give settings of it as the fixture's parameter."""
    async with front_door(**getattr(request, "param", {})) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inference() -> AsyncIterator[FrontDoor]:
    """An inference listener with two servers, for the tests of a module."""
    async with inference_door() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def managed() -> AsyncIterator[Mesh]:
    """Management listeners with a stub gateway, for the tests of a module."""
    async with management_door() as started:
        yield started
