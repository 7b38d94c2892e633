"""What contract tests share: real members on real Unix sockets in the test's own run directory, and callers with claims.

Everything here goes through the kit as a process of the mesh does: interceptors, validation, health and drain included.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import grpc
import pytest
from pydantic import SecretStr

from llamesh.kit import schema
from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.serving import Member
from llamesh.v1 import gateway_pb2_grpc
from tests.conftest import SECRET
from tests.contract import patience
from tests.contract.fake_quant_service import FakeQuantService
from tests.contract.fakes import FakeDownloads, FakeGateway, fake_mesh
from tests.contract.patience import CALM_SECONDS, PATIENCE
from tests.migrated_tables import Recordings
from tests.standings import FakeStandings

Register = Callable[[Member], None]
Main = Callable[[Member], Awaitable[None]]
StartMain = Callable[[Settings, str, Main], Awaitable[Member]]
StartMember = Callable[[Settings, str, Register], Awaitable[Member]]
Connect = Callable[[Settings, str], grpc.aio.Channel]
StartStandings = Callable[[Settings], Awaitable[FakeStandings]]
AsCaller = Callable[..., list[tuple[str, str]]]

_MAINS: WeakKeyDictionary[Member, asyncio.Task[None]] = WeakKeyDictionary()
"""The main of each member that a test has started."""


@pytest.fixture(autouse=True)
def patient_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members, also those in processes of their own, wait long for each other and for the database.

    What these tests have is there or refuses connections: no wait ends only by its deadline. Tests of deadlines set their own.
    """
    monkeypatch.setenv("LLAMESH_DATABASE_SECONDS", str(CALM_SECONDS))
    for name in ("gateway.health.PATIENCE", "gateway.mesh_metrics.PATIENCE", "gateway.issuer.GRANT_DEADLINE"):
        monkeypatch.setattr(f"services.{name}", PATIENCE)
    monkeypatch.setattr("services.download.integrity.CHECK_SECONDS", PATIENCE)
    monkeypatch.setattr("llamesh.kit.rights.START_PATIENCE", PATIENCE)


@pytest.fixture(autouse=True)
def recorded_tables(with_tables: bool, recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members in the process of the tests get their tables in SQLite by a recording."""
    if with_tables:
        monkeypatch.setattr("llamesh.kit.schema._upgrade", recordings.upgrade)


@pytest.fixture(scope="session")
def recordings() -> Recordings:
    """The tables that the first test of each service has made."""
    return Recordings(schema._upgrade)


@pytest.fixture(autouse=True)
def impatient_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that fails is asked again without a pause."""
    monkeypatch.setattr("services.download.source_retries.FIRST_SECONDS", 0.01)


@pytest.fixture
async def start_main() -> AsyncIterator[StartMain]:
    """`member = await start_main(settings, "gateway", services.gateway.service.run)`: a whole process in this one.

    It serves on `settings.socket(name)` until the test ends, or `await stop_member(member)` ends it early, for
    instance to start it again.
    """
    running: list[Member] = []

    async def start(settings: Settings, name: str, main: Main) -> Member:
        member = Member(name, settings)
        _MAINS[member] = serving = asyncio.create_task(main(member))  # type: ignore[arg-type]
        running.append(member)
        started = asyncio.create_task(member.started.wait())
        await asyncio.wait({serving, started}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if serving.done():
            await serving
        assert member.started.is_set(), f"{name} does not serve"
        return member

    yield start
    for member in running:
        member.stop()
    try:
        await asyncio.wait_for(asyncio.gather(*map(_MAINS.__getitem__, running), return_exceptions=True), PATIENCE)
    finally:
        # The process of pytest did not end while a server still listened after a failed start.
        await asyncio.gather(*(member.server.stop(None) for member in running))


@pytest.fixture
def start_member(start_main: StartMain) -> StartMember:
    """`member = await start_member(settings, "gateway", register)`: a member with the servicers that a test gives it.

    `register(member)` adds them: `add_XServicer_to_server(servicer, member.server)` and `member.announce(...)`.
    """

    async def start(settings: Settings, name: str, register: Register) -> Member:
        async def main(member: Member) -> None:
            register(member)
            await member.serve()

        return await start_main(settings, name, main)

    return start


def standings_starter(start_member: StartMember) -> StartStandings:
    """Return what starts the fake users of tests/standings.py where members look for the gateway, once for each home."""
    started: dict[Path, FakeStandings] = {}

    async def start(settings: Settings) -> FakeStandings:
        if settings.home not in started:
            fake = started[settings.home] = FakeStandings()
            add = gateway_pb2_grpc.add_StandingServiceServicer_to_server
            await start_member(settings, "gateway", lambda member: add(fake, member.server))
        return started[settings.home]

    return start


@pytest.fixture
def start_standings(start_member: StartMember) -> StartStandings:
    """`await start_standings(settings)`: see `standings_starter`."""
    return standings_starter(start_member)


@pytest.fixture
def stop_member() -> Callable[[Member], Awaitable[None]]:
    """`await stop_member(member)` drains a member and returns when it is gone.

    A process ends after what its `main` closes when its calls have ended, such as transfers that finish a request. The next one starts
    after that.
    """

    async def stop(member: Member) -> None:
        member.stop()
        await asyncio.wait_for(_MAINS[member], PATIENCE)

    return stop


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`connect(settings, "gateway")` gives a channel that is closed when the test ends."""
    opened: list[grpc.aio.Channel] = []

    def open_channel(settings: Settings, name: str) -> grpc.aio.Channel:
        opened.append(channel(settings, name, "gateway"))
        return opened[-1]

    yield open_channel
    for item in opened:
        await item.close()


@pytest.fixture
def as_caller() -> AsCaller:
    """`metadata=as_caller("ada", "manage", "infer:*")`: what Envoy forwards for a verified token of that subject.

    Further claims by keyword: `as_caller("ada", "manage", contract="ctr_1", jti="key_1")`.
    """

    def metadata(subject: str, *scopes: str, **claims: object) -> list[tuple[str, str]]:
        usual = {"sub": subject, "scopes": list(scopes), "iss": "llamesh", "aud": "llamesh", "iat": int(time.time())}
        payload = usual | claims
        header = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
        return [("x-llamesh-claims", header)]

    return metadata


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """`await until(lambda: condition)`: waits for a condition of this process."""
    return patience.until


@pytest.fixture
def one_settings(tmp_path: Path) -> Settings:
    """Settings for tests that touch no database: on SQLite only, where `settings` runs a test on both."""
    return Settings(home=tmp_path / "home", jwt_secret=SecretStr(SECRET), drain_seconds=1)


@pytest.fixture
def gateway() -> FakeGateway:
    """The labelled fake of the gateway that `url` leads to."""
    return FakeGateway()


@pytest.fixture
def downloads() -> FakeDownloads:
    return FakeDownloads()


@pytest.fixture
def quant() -> FakeQuantService | None:
    """The Quant service of the mesh of fakes: none, unless a test has its own fixture."""
    return None


@pytest.fixture
def url(
    gateway: FakeGateway,
    downloads: FakeDownloads,
    quant: FakeQuantService | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[str]:
    """The address of a mesh of fakes, which the environment names too."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with fake_mesh(gateway, downloads, quant) as address:
        monkeypatch.setenv("LLAMESH_URL", address)
        monkeypatch.setenv("LLAMESH_TOKEN", "token")
        yield address


@pytest.fixture
def mesh(gateway: FakeGateway, url: str) -> FakeGateway:
    """The fake of the gateway, if the command is to find its mesh."""
    return gateway
