"""The cache of a machine removes no file of a model while the others of the same model are fetched."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import OpenWith, import_file
from tests.contract.rich_status import refused
from tests.split_models import Parts
from tests.unit.fake_s3 import fake_s3


async def test_a_model_that_is_larger_than_the_cache_is_refused_with_the_numbers(
    one_settings: Settings, open_with: OpenWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamesh.kit.objects.cache_eviction.MIN_KEPT_SECONDS", -1.0)
    files = Parts().files()
    with fake_s3() as s3:
        keys = {"minio_access_key": SecretStr("k"), "minio_secret_key": SecretStr("s")}
        room = sum(map(len, files.values())) - 1
        service = await open_with(one_settings, minio_endpoint=s3.endpoint, cache_bytes=room, **keys)
        first = [import_file(service, name, data) for name, data in files.items()][0]  # noqa: RUF015 - all are written
        assert (await service.fetched("m1", first)).state == pb.DOWNLOAD_STATE_SUCCEEDED
        with refused("STORE_UNAVAILABLE") as refusal:
            await service.catalogue.LocateModel(pb.LocateModelRequest(model_uuid="m1"))
        assert "LLAMESH_CACHE_BYTES" in refusal.message
        # The record is not blamed for the disk.
        assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
