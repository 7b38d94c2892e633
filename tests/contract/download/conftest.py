"""The real download service on its socket, with a server of model files beside it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.database import Database
from llamesh.kit.serving import Member
from llamesh.v1 import controller_pb2, controller_pb2_grpc, server_pb2
from llamesh.v1 import download_pb2 as pb
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub, DownloadServiceStub
from services.download.service import run
from tests.contract.conftest import AsCaller, Connect, StartMain, StartMember, StartStandings, standings_starter
from tests.contract.download.in_parts import DATA, NEVER, PARALLEL, PART, PARTS, SIZE
from tests.contract.download.journal import HEADER, counted, opened, until
from tests.contract.model_source import ModelServer, model_bytes, model_server
from tests.contract.patience import PATIENCE
from tests.contract.ranged_source import RangedServer, ranged_server
from tests.files import files_below
from tests.standings import FakeStandings

TINY = model_bytes()
ENDED = {pb.DOWNLOAD_STATE_SUCCEEDED, pb.DOWNLOAD_STATE_FAILED, pb.DOWNLOAD_STATE_CANCELLED}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeServers(controller_pb2_grpc.ControllerServiceServicer):
    """FAKE: a controller that has the servers of `by_model`. `asked` gets each question, before its answer."""

    def __init__(self) -> None:
        self.by_model: dict[str, list[str]] = {}
        self.asked: Callable[[str], Awaitable[None]] | None = None

    async def ListDeclaredServers(self, request: Any, context: Any) -> controller_pb2.ListDeclaredServersResponse:
        found = list(self.by_model.get(request.model_uuid, ()))
        if self.asked is not None:
            await self.asked(request.model_uuid)
        return controller_pb2.ListDeclaredServersResponse(
            servers=[server_pb2.Server(server_uuid=each) for each in found[: request.page_size]]
        )


@pytest.fixture
def servers() -> FakeServers:
    """The servers that a deletion asks for."""
    return FakeServers()


@pytest.fixture
def has_controller() -> bool:
    """Whether the fake controller of `servers` is there."""
    return True


@pytest.fixture
def start_standings(start_member: StartMember, servers: FakeServers, has_controller: bool) -> StartStandings:
    """Starts the fake users and the fake controller, once for each home."""
    started: set[Path] = set()
    start_users = standings_starter(start_member)

    async def start(settings: Settings) -> FakeStandings:
        if has_controller and settings.home not in started:
            started.add(settings.home)
            add = controller_pb2_grpc.add_ControllerServiceServicer_to_server
            await start_member(settings, "controller", lambda member: add(servers, member.server))
        return await start_users(settings)

    return start


@pytest.fixture
async def web() -> AsyncIterator[ModelServer]:
    async with model_server() as server:
        yield server


@dataclass
class Service:
    """The download service as its callers see it."""

    settings: Settings
    member: Member
    downloads: DownloadServiceStub
    catalogue: CatalogueServiceStub
    caller: list[tuple[str, str]]

    async def start(self, model_uuid: str, source: str = "", **fields: Any) -> pb.Download:
        request = pb.StartDownloadRequest(model_uuid=model_uuid, source=source, **fields)
        return await self.downloads.StartDownload(request, metadata=self.caller)

    async def get(self, model_uuid: str) -> pb.Download:
        return await self.downloads.GetDownload(pb.GetDownloadRequest(model_uuid=model_uuid), metadata=self.caller)

    async def cancel(self, model_uuid: str) -> pb.Download:
        return await self.downloads.CancelDownload(
            pb.CancelDownloadRequest(model_uuid=model_uuid), metadata=self.caller
        )

    async def pause(self, model_uuid: str) -> pb.Download:
        return await self.downloads.PauseDownload(pb.PauseDownloadRequest(model_uuid=model_uuid), metadata=self.caller)

    async def resume(self, model_uuid: str) -> pb.Download:
        return await self.downloads.ResumeDownload(
            pb.ResumeDownloadRequest(model_uuid=model_uuid), metadata=self.caller
        )

    async def state(self, model_uuid: str, *states: int) -> pb.Download:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.get(model_uuid)
                if found.state in (states or ENDED):
                    return found
                await asyncio.sleep(0.03)

    async def fetched(self, model_uuid: str, source: str = "", **fields: Any) -> pb.Download:
        """Start it and wait for its end."""
        await self.start(model_uuid, source, **fields)
        return await self.state(model_uuid)

    async def model(self, model_uuid: str) -> Any:
        return await self.catalogue.GetCatalogueModel(pb.GetCatalogueModelRequest(model_uuid=model_uuid))

    async def delete(self, model_uuid: str) -> Any:
        return await self.catalogue.DeleteCatalogueModel(pb.DeleteCatalogueModelRequest(model_uuid=model_uuid))

    async def path(self, model_uuid: str) -> Path:
        return Path((await self.catalogue.LocateModel(pb.LocateModelRequest(model_uuid=model_uuid))).path)

    @property
    def stored(self) -> list[Path]:
        """Every file in the store, published or not."""
        return files_below(self.settings.home / "objects")

    async def no_files(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.stored:
                await asyncio.sleep(0.01)


Open = Callable[[], Awaitable[Service]]
OpenWith = Callable[..., Awaitable[Service]]
Restart = Callable[[], Awaitable[tuple[Service, list[tuple[int, int]]]]]
"""Returns the new service and the ranges that were asked for before it."""


@pytest.fixture
def open_with(
    web: ModelServer, start_main: StartMain, start_standings: StartStandings, connect: Connect, as_caller: AsCaller
) -> OpenWith:
    """Starts the service with settings of the test's."""

    async def start(settings: Settings, **changes: object) -> Service:
        mine = settings.model_copy(update={"http_source_hosts": (web.host,), **changes})
        await start_standings(mine)
        member = await start_main(mine, "download", run)
        channel = connect(mine, "download")
        return Service(
            mine, member, DownloadServiceStub(channel), CatalogueServiceStub(channel), as_caller("ada", "manage")
        )

    return start


@pytest.fixture
def open_service(settings: Settings, open_with: OpenWith) -> Open:
    """Starts the service, also again on the same data."""
    return lambda: open_with(settings)


@pytest.fixture
async def service(open_service: Open) -> Service:
    return await open_service()


@pytest.fixture
async def sqlite_service(one_settings: Settings, open_with: OpenWith) -> Service:
    """For tests in which the database plays no part."""
    return await open_with(one_settings)


@pytest.fixture
async def source() -> AsyncIterator[RangedServer]:
    async with ranged_server(DATA) as server:
        yield server


@pytest.fixture
async def journal(settings: Settings) -> AsyncIterator[Database]:
    async with opened(settings) as database:
        yield database


@pytest.fixture
def parted(settings: Settings, open_with: OpenWith, source: RangedServer) -> OpenWith:
    """Starts the service with small parts, and with settings of the test's."""

    def start(**changes: object) -> Awaitable[Service]:
        parts = {"download_part_bytes": PART, "download_parallel_parts": PARALLEL}
        return open_with(settings, **(parts | {"http_source_hosts": (source.host,)} | changes))

    return start


@pytest.fixture
def open_half(parted: OpenWith, source: RangedServer, journal: Database) -> OpenWith:
    """Starts a service that has about half of the model, with settings of the test's."""

    async def start(**changes: object) -> Service:
        source.stop_at = HEADER + SIZE // 2
        service = await parted(**changes)
        await service.start("m1", source.url)
        await source.stopped.wait()

        async def recorded() -> bool:
            return (await counted(journal))[1] >= PARTS // 2 - PARALLEL

        await until(recorded)
        return service

    return start


@pytest.fixture
async def half(open_half: OpenWith) -> Service:
    return await open_half()


@pytest.fixture
def restart(
    half: Service,
    source: RangedServer,
    journal: Database,
    parted: OpenWith,
    stop_member: Callable[[Member], Awaitable[None]],
) -> Restart:
    """Stops the service that has half of the model, and starts it again; the source holds nothing back any more."""

    async def restarted() -> tuple[Service, list[tuple[int, int]]]:
        await stop_member(half.member)
        assert (await counted(journal))[0] == 1
        asked = list(source.ranges)
        source.go_on_until(NEVER)
        return await parted(), asked

    return restarted


def import_file(service: Service, name: str, data: bytes) -> str:
    folder = service.settings.home / "import"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return str(folder / name)
