"""The Quant service removes from its bucket what dead writers have staged long ago."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from tests.contract.conftest import StartMain
from tests.contract.patience import PATIENCE
from tests.contract.quant.conftest import Quant, run
from tests.unit.fake_s3 import FakeS3, fake_s3


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


async def test_a_running_service_sweeps_its_bucket(
    s3: FakeS3, prepared: Quant, start_main: StartMain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.unit.fake_s3.TIME", datetime(2020, 1, 1, tzinfo=UTC))
    s3.buckets.add(prepared.settings.quant_minio_bucket)
    s3.objects["staging/of-a-dead-writer"] = b"x"
    keys = {"minio_access_key": SecretStr(s3.access_key), "minio_secret_key": SecretStr(s3.secret_key)}
    await start_main(prepared.settings.model_copy(update={"minio_endpoint": s3.endpoint} | keys), "quant", run)
    async with asyncio.timeout(PATIENCE):
        while s3.objects:
            await asyncio.sleep(0.01)
