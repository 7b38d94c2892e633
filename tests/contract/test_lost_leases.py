"""A process that finds its role taken over ends, says by whom, and does not get it back while the other lives."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr
from sqlalchemy import text

from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database

SECONDS = 60.0
TAKE = "UPDATE lease SET owner_id = 'thief', owner_words = 'process 7 on host thief', expires_at = now() + interval '1 hour'"
ROLES = {"controller": "controller", "download": "services.download"}


@asynccontextmanager
async def process(settings: Settings, member: str) -> AsyncIterator[asyncio.subprocess.Process]:
    assert settings.database_url is not None
    environment = {
        **os.environ,
        "LLAMESH_HOME": str(settings.home),
        "LLAMESH_DRAIN_SECONDS": "1",
        "DATABASE_URL": settings.database_url.get_secret_value(),
    }
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", ROLES[member], env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def serves(settings: Settings, member: str) -> None:
    async with channel(settings, member, "gateway") as connection:
        health = health_pb2_grpc.HealthStub(connection)
        await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=SECONDS)


@pytest.mark.parametrize("member", ROLES)
async def test_a_process_whose_lease_is_taken_ends_and_names_the_owner(
    postgres: Callable[[], str], tmp_path: Path, member: str
) -> None:
    settings = Settings(home=tmp_path / "home", database_url=SecretStr(postgres()))
    async with process(settings, member) as owner:
        await serves(settings, member)
        database = open_database(settings, member)
        async with database.begin() as session:
            await session.execute(text(TAKE))
        _, words = await asyncio.wait_for(owner.communicate(), SECONDS)
        assert owner.returncode == 2, words
        assert "process 7 on host thief" in words.decode().strip().splitlines()[-1]
        # It neither released nor renewed what is another's.
        async with database.read() as session:
            left = await session.scalar(
                text("SELECT owner_id FROM lease WHERE expires_at > now() + interval '30 minutes'")
            )
        assert left == "thief"
        await database.close()
