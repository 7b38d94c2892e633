"""A running service removes from its bucket what dead writers have staged: it does not begin again for weeks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.kit.objects.s3 import S3Store
from llamesh.kit.ownership import owner_of
from tests.contract.download.conftest import OpenWith
from tests.contract.download.journal import until
from tests.unit.fake_s3 import FakeS3, fake_s3
from tests.unit.test_s3_staging import chunks


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


async def test_a_running_service_sweeps_its_bucket(
    s3: FakeS3, settings: Settings, open_with: OpenWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.service.STORE_SWEEP_SECONDS", 0.05)
    keys = {"minio_access_key": SecretStr(s3.access_key), "minio_secret_key": SecretStr(s3.secret_key)}
    service = await open_with(settings, minio_endpoint=s3.endpoint, **keys)
    killed = S3Store(
        s3.place().model_copy(update={"bucket": service.settings.minio_bucket}),
        service.settings.home / "cache",
        writer=owner_of(service.settings.home, "download").id,
    )
    await killed.stage(chunks(10))
    await killed.close()

    async def empty() -> bool:
        return s3.objects == {}

    await until(empty)
