"""A real MinIO of the test's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.cluster.s3_server import BUCKET, S3Server
from tests.ports import free_ports

__all__ = ["BUCKET", "MinioServer", "minio"]


class MinioServer(S3Server):
    """One server; its data outlives `stop` and `start`."""

    name = "minio"
    health = "/minio/health/cluster"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._console = f"127.0.0.1:{free_ports(1)[0]}"

    def words(self) -> Sequence[str]:
        """See S3Server."""
        return ["server", str(self.data), "--address", self.endpoint, "--console-address", self._console]

    def variables(self) -> Mapping[str, str]:
        """See S3Server."""
        return {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}

    @property
    def uploads(self) -> dict[str, Path]:
        """See S3Server."""
        return {str(path): path for path in (self.data / ".minio.sys" / "multipart").glob("*/*")}


@pytest.fixture(scope="module")
def minio() -> Iterator[MinioServer]:
    """A server for the tests of a module."""
    with MinioServer.running() as server:
        yield server
