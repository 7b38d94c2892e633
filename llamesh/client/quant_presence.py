"""Says of a call of the Quant service that the mesh has none. Both clients use it, with and without `await`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llamesh.client import errors

START_QUANT = "on its machine: `llamesh down`, then `llamesh up --quant`, or LLAMESH_QUANT=true for every start"
"""What gives a mesh a Quant service."""


def is_absent(error: errors.MeshError) -> bool:
    """Whether a call of the Quant service failed because the mesh has none. The port of another service names that service."""
    return error.code == "UNIMPLEMENTED" and not error.metadata.get("service")


@contextmanager
def asking_quant() -> Iterator[None]:
    """Reword the errors of a mesh that answers calls of the Quant service like calls that nobody knows."""
    try:
        yield
    except errors.MeshError as error:
        if is_absent(error):
            error.message = "the mesh runs no Quant service"
            error.remedy = START_QUANT
        raise
