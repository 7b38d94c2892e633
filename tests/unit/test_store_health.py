"""The health of the object store, over several checks of a store that a person must mend."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llamesh.kit.objects import DirectoryStore, StoreDeniedError
from llamesh.kit.objects.s3 import S3Store
from services.download.store_health import StoreHealth
from tests.unit.fake_s3 import fake_s3
from tests.unit.test_object_store_failures import elsewhere

__all__ = ["elsewhere"]


async def test_a_store_with_models_on_another_file_system_is_never_usable(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "models").symlink_to(elsewhere)
    health = StoreHealth(DirectoryStore(tmp_path), time.monotonic)
    for _ in range(3):
        with pytest.raises(StoreDeniedError):
            await health._check()
        assert (health.usable, health.denied) == (False, True)
    (tmp_path / "models").unlink()
    await health._check()
    assert health.usable


async def test_a_bucket_whose_name_the_client_refuses_is_denied(tmp_path: Path) -> None:
    """The client takes the names of old buckets, and makes none with such a name."""
    with fake_s3() as server:
        store = S3Store(server.place().model_copy(update={"bucket": "Old_Models"}), tmp_path)
        health = StoreHealth(store, time.monotonic)
        with pytest.raises(StoreDeniedError, match="check MINIO_BUCKET"):
            await health._check()
        assert health.denied
        await store.close()
