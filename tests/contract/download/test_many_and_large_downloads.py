"""Many downloads at once all end, and a large one takes the memory of a small one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from services.download.slots import MAX_OF_USER, MAX_RUNNING
from tests.contract.conftest import AsCaller, Connect, StartStandings
from tests.contract.download.conftest import OpenWith, Service, import_file, sha256
from tests.contract.download.forks import ForkedReplica, forks
from tests.contract.download.large_files import Zeros
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.patience import PATIENCE
from tests.contract.ranged_source import RangedServer, ranged_server

MANY = 50
RATE = 64 << 20
SIZE = 1 << 20
MAX_MEMORY = 4 * (16 << 20)
"""Most bytes that a transfer may take: the size of a part times the parts at once."""


async def test_fifty_downloads_at_once_all_end_and_leave_a_slot_to_another_user(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, as_caller: AsCaller
) -> None:
    names = [f"m{number}" for number in range(MANY)]
    web.files |= {f"{name}.gguf": model_bytes(name, SIZE) for name in names}
    web.hold_after = {f"{name}.gguf": SIZE // 2 for name in names}
    service = await open_with(one_settings, download_bytes_per_second=RATE)
    for name in names[:-1]:
        await service.start(name, web.url(f"{name}.gguf"))
    async with asyncio.timeout(PATIENCE):
        while len(web.asked) < MAX_OF_USER:
            await asyncio.sleep(0.01)
    service.caller = as_caller("bob", "manage")
    await service.start(names[-1], web.url(f"{names[-1]}.gguf"))
    async with asyncio.timeout(PATIENCE):
        while len(web.asked) < MAX_RUNNING:
            await asyncio.sleep(0.01)
    assert web.asked == [f"{name}.gguf" for name in (*names[:MAX_OF_USER], names[-1])]
    web.go_on.set()
    for name in names:
        found = await service.state(name)
        assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(web.files[f"{name}.gguf"]))
    assert sorted(web.asked) == sorted(web.files), "each was asked for once"


async def test_a_local_file_waits_for_no_stalled_download_and_a_download_says_what_it_waits_for(
    service: Service, web: ModelServer
) -> None:
    names = [f"m{number}" for number in range(MAX_OF_USER + 1)]
    web.files |= {f"{name}.gguf": model_bytes(name, SIZE) for name in names}
    web.hold_after = {f"{name}.gguf": SIZE // 2 for name in names}
    for name in names:
        await service.start(name, web.url(f"{name}.gguf"))
    path = import_file(service, "local.gguf", model_bytes("local"))
    assert (await service.fetched("local", f"file://{path}")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    async with asyncio.timeout(PATIENCE):
        while "of one user" not in (await service.get(names[-1])).error.message:
            await asyncio.sleep(0.01)
    assert (await service.get(names[-1])).state == pb.DOWNLOAD_STATE_QUEUED
    web.go_on.set()
    assert (await service.state(names[-1])).state == pb.DOWNLOAD_STATE_SUCCEEDED


def peak(process: int) -> int:
    """The most memory that a process has had so far, in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


@pytest.fixture
def size() -> int:
    """Bytes of the large model."""
    return 1 << 28


@pytest.fixture
async def source(size: int) -> AsyncIterator[RangedServer]:
    async with ranged_server(Zeros(size).data) as server:
        yield server


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of memory")
async def test_a_large_model_takes_no_more_memory_than_its_parts_at_once(
    source: RangedServer,
    size: int,
    tmp_path: Path,
    connect: Connect,
    as_caller: AsCaller,
    start_standings: StartStandings,
) -> None:
    environment = {"LLAMESH_HTTP_SOURCE_HOSTS": source.host}
    replica = ForkedReplica(tmp_path / "home", environment, connect, as_caller("ada", "manage"), start_standings)
    replica.holes = True
    with forks() as replica.forks:
        await replica.start()
        try:
            await replica.download("m1", source.url)
            before = peak(replica.pid)
            found = await replica.ended("m1")
            assert (found.state, found.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
            assert (found.sha256, found.bytes_done) == (await asyncio.to_thread(Zeros(size).sha256), len(source.data))
            taken = peak(replica.pid) - before
            assert taken < MAX_MEMORY, f"{taken / 2**20:.0f} MiB"
        finally:
            await replica.end(signal.SIGKILL)
