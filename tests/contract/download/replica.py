"""Download services as processes of their own, which a test may kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub, DownloadServiceStub
from tests.contract.conftest import Connect, StartStandings
from tests.contract.patience import available

ENDED = {pb.DOWNLOAD_STATE_SUCCEEDED, pb.DOWNLOAD_STATE_FAILED, pb.DOWNLOAD_STATE_CANCELLED}
SECONDS = 60.0


class Replica:
    """One process of the download service in a home of its own.

    Its calls are repeated while it is unavailable: all channels to one address share a connection, and the first call after a kill may be
    written to the connection of the killed process.
    """

    def __init__(
        self,
        home: Path,
        environment: dict[str, str],
        connect: Connect,
        caller: Any,
        start_standings: StartStandings,
    ) -> None:
        self._start_standings = start_standings
        self.settings = Settings(home=home)
        self._environment = {**os.environ, **environment, "LLAMESH_HOME": str(home), "LLAMESH_DRAIN_SECONDS": "1"}
        self._connect = connect
        self._caller = caller
        self.process: asyncio.subprocess.Process | None = None
        self.log = home.with_suffix(".log")

    async def start(self) -> None:
        await self._start_standings(self.settings)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.download", env=self._environment, stdout=log, stderr=log
            )

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), SECONDS)

    async def download(self, model_uuid: str, source: str = "", sha256: str = "") -> pb.Download:
        request = pb.StartDownloadRequest(model_uuid=model_uuid, source=source, sha256=sha256)
        stub = DownloadServiceStub(self._connect(self.settings, "download"))
        return await available(
            lambda: stub.StartDownload(request, metadata=self._caller, wait_for_ready=True, timeout=SECONDS)
        )

    async def state(self, model_uuid: str) -> pb.Download:
        stub = DownloadServiceStub(self._connect(self.settings, "download"))
        request = pb.GetDownloadRequest(model_uuid=model_uuid)
        return await available(
            lambda: stub.GetDownload(request, metadata=self._caller, wait_for_ready=True, timeout=SECONDS)
        )

    async def ended(self, model_uuid: str) -> pb.Download:
        async with asyncio.timeout(SECONDS):
            while (found := await self.state(model_uuid)).state not in ENDED:
                await asyncio.sleep(0.05)
        return found

    async def cancel(self, model_uuid: str) -> pb.Download:
        stub = DownloadServiceStub(self._connect(self.settings, "download"))
        request = pb.CancelDownloadRequest(model_uuid=model_uuid)
        return await available(
            lambda: stub.CancelDownload(request, metadata=self._caller, wait_for_ready=True, timeout=SECONDS)
        )

    async def pause(self, model_uuid: str) -> pb.Download:
        stub = DownloadServiceStub(self._connect(self.settings, "download"))
        request = pb.PauseDownloadRequest(model_uuid=model_uuid)
        return await available(
            lambda: stub.PauseDownload(request, metadata=self._caller, wait_for_ready=True, timeout=SECONDS)
        )

    async def resume(self, model_uuid: str) -> pb.Download:
        stub = DownloadServiceStub(self._connect(self.settings, "download"))
        request = pb.ResumeDownloadRequest(model_uuid=model_uuid)
        return await available(
            lambda: stub.ResumeDownload(request, metadata=self._caller, wait_for_ready=True, timeout=SECONDS)
        )

    async def delete(self, model_uuid: str) -> None:
        stub = CatalogueServiceStub(self._connect(self.settings, "download"))
        request = pb.DeleteCatalogueModelRequest(model_uuid=model_uuid)
        await available(lambda: stub.DeleteCatalogueModel(request, wait_for_ready=True, timeout=SECONDS))


NewReplica = Callable[..., Replica]
"""`new(name, **changes)`: a replica in a folder of that name; `changes` are environment variables of its own."""


@asynccontextmanager
async def replicas(
    folder: Path, environment: dict[str, str], connect: Connect, caller: Any, start_standings: StartStandings
) -> AsyncIterator[NewReplica]:
    """Makes replicas with one environment, and kills those that still run at the end."""
    made: list[Replica] = []

    def new(name: str, **changes: str) -> Replica:
        made.append(Replica(folder / name, environment | changes, connect, caller, start_standings))
        return made[-1]

    yield new
    for replica in made:
        if replica.process is not None:
            await replica.end(signal.SIGKILL)
