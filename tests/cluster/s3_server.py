"""A real S3 server of the test's own, in a folder, on free ports, with credentials that nothing else knows."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx
from minio import Minio

from tests.mesh.running import ROOT, until
from tests.ports import free_ports

BUCKET = "inference-models"


class S3Server(ABC):
    """One server; its data outlives `stop` and `start`."""

    name: str
    """Of its program in .tools/bin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.endpoint = f"127.0.0.1:{free_ports(1)[0]}"
        self.access_key, self.secret_key = secrets.token_hex(10), secrets.token_hex(20)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """A server for the block, in a folder of its own."""
        with tempfile.TemporaryDirectory(prefix=f"{cls.name}-") as folder:
            server = cls(Path(folder))
            try:
                server.start()
                yield server
            finally:
                server.stop()

    @abstractmethod
    def words(self) -> Sequence[str]:
        """What follows the program on its command line."""

    @abstractmethod
    def variables(self) -> Mapping[str, str]:
        """The variables that tell the program its credentials."""

    @property
    @abstractmethod
    def health(self) -> str:
        """The path that answers 200 once it takes requests."""

    @property
    @abstractmethod
    def uploads(self) -> dict[str, Path]:
        """Unfinished multipart uploads, read from its folder: servers list them for exact names only."""

    def start(self) -> None:
        """Start it and wait until it takes requests."""
        program = ROOT / ".tools" / "bin" / self.name
        assert program.exists(), f"not built: run `python tools/build.py {self.name}`"
        self.data.mkdir(exist_ok=True)
        others = {name: value for name, value in os.environ.items() if not name.startswith(("MINIO_", "ROOT_", "VGW_"))}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program), *self.words()],
                env={**others, **self.variables(), "HOME": str(self.folder)},
                stdout=log,
                stderr=log,
            )
        until(self._ready, 60, f"{self.name}; {self.folder / 'server.log'} says why")

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            return httpx.get(f"http://{self.endpoint}{self.health}").status_code == 200
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
