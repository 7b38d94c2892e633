"""A real MinIO of the test's own, in a folder, on free ports, with credentials that nothing else knows."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from minio import Minio

from tests.mesh.running import ROOT, until
from tests.ports import free_ports

PROGRAM = ROOT / ".tools" / "bin" / "minio"
BUCKET = "inference-models"


class MinioServer:
    """One server; its data outlives `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.data = folder / "data"
        port, console = free_ports(2)
        self.endpoint = f"127.0.0.1:{port}"
        self._console = f"127.0.0.1:{console}"
        self.access_key, self.secret_key = secrets.token_hex(10), secrets.token_hex(20)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it takes requests."""
        assert PROGRAM.exists(), "not built: run `python tools/build.py minio`"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MINIO_")}
        own = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key, "HOME": str(self._folder)}
        with (self._folder / "minio.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(PROGRAM),
                    "server",
                    str(self.data),
                    "--address",
                    self.endpoint,
                    "--console-address",
                    self._console,
                ],
                env={**environment, **own},
                stdout=log,
                stderr=log,
            )
        until(self._ready, 60, f"MinIO; {self._folder / 'minio.log'} says why")

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "minio.log").read_text()[-2000:]
        try:
            return httpx.get(f"http://{self.endpoint}/minio/health/cluster").status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """Kill it: what it answers from now on is nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def settings(self) -> dict[str, str]:
        """What tells a mesh of it."""
        return {
            "MINIO_ENDPOINT": self.endpoint,
            "MINIO_BUCKET": BUCKET,
            "MINIO_SECURE": "false",
            "MINIO_ACCESS_KEY": self.access_key,
            "MINIO_SECRET_KEY": self.secret_key,
        }

    @property
    def client(self) -> Minio:
        """A client that looks into it beside the mesh."""
        return Minio(self.endpoint, access_key=self.access_key, secret_key=self.secret_key, secure=False)

    def objects(self, prefix: str = "") -> list[str]:
        """Names of the objects in the bucket."""
        return [str(item.object_name) for item in self.client.list_objects(BUCKET, prefix=prefix, recursive=True)]

    def empty(self) -> None:
        """Remove all objects of the bucket, if there is one."""
        if self.client.bucket_exists(BUCKET):
            for name in self.objects():
                self.client.remove_object(BUCKET, name)


@pytest.fixture(scope="module")
def minio() -> Iterator[MinioServer]:
    """A server for the tests of a module."""
    with tempfile.TemporaryDirectory(prefix="minio-") as folder:
        server = MinioServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
