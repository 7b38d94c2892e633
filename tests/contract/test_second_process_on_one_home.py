"""A second process of a member on one home is refused by name and touches nothing; a killed one is followed at once."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from tests.contract.patience import available

MEMBERS = {
    "gateway": "services.gateway",
    "contract": "services.contract",
    "download": "services.download",
    "quant": "services.quant",
    "controller": "controller",
}
SECONDS = 60.0


@asynccontextmanager
async def process(settings: Settings, member: str) -> AsyncIterator[asyncio.subprocess.Process]:
    url = settings.database_url
    environment = {
        **os.environ,
        "LLAMESH_HOME": str(settings.home),
        "LLAMESH_DRAIN_SECONDS": "1",
        **({"DATABASE_URL": url.get_secret_value()} if url else {}),
    }
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", MEMBERS[member], env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def answers(settings: Settings, member: str) -> bool:
    async with channel(settings, member, "gateway") as connection:
        health = health_pb2_grpc.HealthStub(connection)
        check = partial(health.Check, health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=SECONDS)
        # A killed process may still take a connection, and reset it, before its last thread has ended.
        answer = await available(check)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("member", MEMBERS)
async def test_the_second_is_refused_and_the_first_serves_on(one_settings: Settings, member: str) -> None:
    socket = one_settings.socket(member)
    async with process(one_settings, member) as first:
        assert await answers(one_settings, member)
        inode = socket.stat().st_ino
        async with process(one_settings, member) as second:
            _, words = await asyncio.wait_for(second.communicate(), SECONDS)
            assert second.returncode == 2, words
        last = words.decode().strip().splitlines()[-1]
        assert f"process {first.pid} is already the {member} of this home" in last
        assert str(one_settings.home) in last
        assert socket.stat().st_ino == inode
        assert await answers(one_settings, member)
        first.terminate()
        await asyncio.wait_for(first.communicate(), SECONDS)
        assert first.returncode == 0
    assert not list((one_settings.home / "locks").iterdir())


async def test_a_killed_process_is_followed_at_once(one_settings: Settings) -> None:
    async with process(one_settings, "download") as first:
        assert await answers(one_settings, "download")
        first.kill()
        async with process(one_settings, "download") as second:
            assert await answers(one_settings, "download")
            assert second.returncode is None


async def test_one_that_is_ending_is_waited_for(one_settings: Settings) -> None:
    async with process(one_settings, "download") as first:
        assert await answers(one_settings, "download")
        async with channel(one_settings, "download", "gateway") as connection:
            # An open watch keeps the first one draining for a moment.
            watch = health_pb2_grpc.HealthStub(connection).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            first.terminate()
            async with process(one_settings, "download") as second:
                await asyncio.wait_for(first.communicate(), SECONDS)
                assert first.returncode == 0
                assert await answers(one_settings, "download")
                assert second.returncode is None
