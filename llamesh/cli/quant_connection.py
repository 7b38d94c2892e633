"""Connects a command to the Quant service of its mesh, which a mesh may lack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit

if TYPE_CHECKING:
    from llamesh.client.sync import Client


@contextmanager
def quant_connected() -> Iterator[Client]:
    """A client for the selected mesh, whose Quant service is called."""
    with connected() as mesh, calls_quant(mesh):
        yield mesh


@contextmanager
def calls_quant(mesh: Client) -> Iterator[None]:
    """CommandError, with the remedy, if the block calls the Quant service of a mesh that has none."""
    from llamesh.client.errors import MeshError
    from llamesh.client.quant_presence import START_QUANT, is_absent

    try:
        yield
    except MeshError as error:
        if not is_absent(error):
            raise
        raise CommandError(
            f"the mesh at {mesh.profile.url} runs no Quant service",
            hint=START_QUANT,
            code=Exit.UNAVAILABLE,
        ) from error
