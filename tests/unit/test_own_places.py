"""What a store refuses is said with the names of its own settings, in the service that uses it and by doctor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.objects import StoreDeniedError, StoreUnavailableError, object_store
from llamesh.kit.own_places import models_place, quant_place
from llamesh.kit.source_places import StorePlace
from llamesh.kit.source_readiness import sources
from tests.unit.fake_s3 import FakeS3, fake_s3


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings()


def own(s3: FakeS3) -> dict[str, str]:
    """A server of Quant's own."""
    return {f"QUANT_{name}": value for name, value in s3.environment.items()}


async def refused(place: StorePlace | None, folder: Path, error: type[Exception]) -> str:
    store = object_store(folder, place, cache_directory=folder)
    try:
        with pytest.raises(error) as caught:
            await store.prepare()
    finally:
        await store.close()
    return str(caught.value)


@pytest.mark.parametrize("has_own", [True, False])
async def test_refused_keys_are_those_of_the_bucket(
    s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_own: bool
) -> None:
    s3.refused_keys.add(s3.access_key)
    read = settings(monkeypatch, **s3.environment, **(own(s3) if has_own else {}))
    begin = "QUANT_MINIO_" if has_own else "MINIO_"
    words = await refused(quant_place(read), tmp_path, StoreDeniedError)
    assert f" {begin}ACCESS_KEY and {begin}SECRET_KEY " in words
    assert " MINIO_ACCESS_KEY " in await refused(models_place(read), tmp_path, StoreDeniedError)


async def test_a_server_that_is_away_is_named_by_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_s3() as server:
        variables = own(server)
    place = quant_place(settings(monkeypatch, **variables))
    assert " QUANT_MINIO_ENDPOINT " in await refused(place, tmp_path, StoreUnavailableError)


async def test_a_bucket_of_quant_on_the_server_of_the_mesh_has_a_setting_of_its_own(
    s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings(monkeypatch, QUANT_MINIO_BUCKET="Old_Variants", **s3.environment)
    assert "check QUANT_MINIO_BUCKET" in await refused(quant_place(read), tmp_path, StoreDeniedError)


@pytest.mark.parametrize("has_own", [True, False])
def test_doctor_names_the_settings_of_the_bucket_of_quant(
    s3: FakeS3, monkeypatch: pytest.MonkeyPatch, has_own: bool
) -> None:
    s3.refused_keys.add(s3.access_key)
    variables: dict[str, Any] = own(s3) if has_own else s3.environment
    read = settings(monkeypatch, QUANT_SERVICE_URL=f"http://{s3.endpoint}", **variables)
    (report,) = [each for each in sources(read) if each.check == "quant store"]
    assert report.fix.startswith("correct QUANT_MINIO_ENDPOINT" if has_own else "correct MINIO_ENDPOINT")
    assert report.fix.endswith(" and QUANT_MINIO_BUCKET")
