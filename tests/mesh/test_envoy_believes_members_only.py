"""A real Envoy takes its configuration only from a server that proves to be the controller of its mesh, and shows Envoy's certificate."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from llamesh.cli.mesh import envoy
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.locations import make_private
from llamesh.member_authority import MemberAuthority
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY, present
from tests.ports import free_ports

DOMAIN = "mesh.test"
SECONDS = 30.0


class Impostor:
    """A control plane that notes who opens a stream, with the certificate of any member of any mesh."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.callers: list[bytes] = []
        self._server: grpc.aio.Server | None = None

    async def show(self, folder: Path) -> None:
        """Listen with the certificate in a folder."""
        await self.close()
        files = {name: (present(folder) / name).read_bytes() for name in (CERTIFICATE, KEY, AUTHORITIES)}
        pair = [(files[KEY], files[CERTIFICATE])]
        credentials = grpc.ssl_server_credentials(pair, files[AUTHORITIES], require_client_auth=True)
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        handlers = grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": handler})
        self._server.add_generic_rpc_handlers((handlers,))
        self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def _stream(self, requests, context):
        async for _ in requests:
            self.callers.extend(context.auth_context()["peer_uri"])
        for never in ():
            yield never

    async def close(self) -> None:
        if self._server:
            await self._server.stop(None)


@pytest.fixture
async def impostor() -> AsyncIterator[Impostor]:
    found = Impostor(free_ports(1)[0])
    yield found
    await found.close()


@pytest.fixture
async def front(tmp_path: Path, impostor: Impostor) -> AsyncIterator[MeshSettings]:
    """A real Envoy whose controller is at the address of the impostor."""
    authority = MemberAuthority(tmp_path / "members", DOMAIN)
    for member in ("envoy", "controller", "quant"):
        authority.issue(member, datetime.now(UTC))
    settings = MeshSettings(
        home=tmp_path,
        run_dir=make_private(tmp_path / "run"),
        bind="127.0.0.1",
        public_host="localhost",
        inference_port=1,
        gateway_port=2,
        contract_port=3,
        download_port=4,
        drain_seconds=1,
        member_patience_seconds=20,
        member_addresses={"controller": f"127.0.0.1:{impostor.port}"},
        member_certificates=tmp_path / "members" / "{member}",
        trust_domain=DOMAIN,
    )
    envoy.write_bootstrap(settings)
    with (tmp_path / "envoy.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*envoy.command(settings, os.getpid()), stdout=log, stderr=log)
    yield settings
    process.kill()
    await process.wait()


def failures(settings: MeshSettings) -> int:
    """How often Envoy has refused the certificate of its controller."""
    names = r"cluster\.controller\.ssl\.fail_verify_(san|error)"
    lines = envoy.ask_admin(settings, "GET", f"/stats?filter={names}").decode().splitlines()
    return sum(int(line.rpartition(" ")[2]) for line in lines)


async def until(condition) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                if await asyncio.to_thread(condition):
                    return
            except OSError:
                pass  # Envoy has not started
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["another member", "another mesh's controller", "another authority's controller"])
async def test_an_impostor_is_told_nothing(front: MeshSettings, impostor: Impostor, tmp_path: Path, kind: str) -> None:
    now = datetime.now(UTC)
    if kind == "another member":
        folder = tmp_path / "members" / "quant"
    elif kind == "another mesh's controller":
        # The same authority signs for both meshes.
        folder = tmp_path / "members" / "controller"
        MemberAuthority(tmp_path / "members", "other.test").issue("controller", now, renew=True)
    else:
        MemberAuthority(tmp_path / "other", DOMAIN).issue("controller", now)
        folder = _trusting(tmp_path)
    await impostor.show(folder)
    await until(lambda: failures(front) >= 2)
    assert impostor.callers == []
    MemberAuthority(tmp_path / "members", DOMAIN).issue("controller", now, renew=True)
    await impostor.show(tmp_path / "members" / "controller")
    await until(lambda: impostor.callers)
    assert set(impostor.callers) == {f"spiffe://{DOMAIN}/envoy".encode()}


def _trusting(folder: Path) -> Path:
    """The certificate of the other authority's controller, which trusts Envoy's authority."""
    mixed = make_private(folder / "mixed")
    other, own = present(folder / "other" / "controller"), present(folder / "members" / "controller")
    for name in (CERTIFICATE, KEY):
        (mixed / name).write_bytes((other / name).read_bytes())
    (mixed / AUTHORITIES).write_bytes((own / AUTHORITIES).read_bytes())
    return mixed
