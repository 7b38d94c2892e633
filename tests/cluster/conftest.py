"""The whole mesh of tests/mesh, for tests that speak to it with programs built from modules."""

from tests.mesh.conftest import mesh, served

__all__ = ["mesh", "served"]
