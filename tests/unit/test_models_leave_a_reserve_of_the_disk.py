"""Models, variants and copies of models leave bytes of the disk free, so that the databases beside them can still be written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llamesh.cli.mesh.checks import MIN_FREE_BYTES
from llamesh.disk_space import RESERVE_BYTES, DiskSpace
from llamesh.kit.config import Settings
from llamesh.kit.objects import PartLayout, StoreFullError
from llamesh.kit.objects.cache_eviction import CacheEviction
from llamesh.kit.objects.directory import DirectoryStore
from services.download.retry_backoffs import RetryBackoffs
from services.download.room import Room
from services.download.tables import TransferRow
from services.quant import submission

SIZE = 1000
Free = Callable[[int], None]
"""Sets how many bytes of the disk are free."""


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    def disk(free: int) -> None:
        space = DiskSpace(free, 1 << 40)
        for module in (
            "llamesh.kit.objects.directory",
            "llamesh.kit.objects.cache_eviction",
            "services.quant.submission",
        ):
            monkeypatch.setattr(f"{module}.disk_space", lambda _: space)

    return disk


async def chunks() -> AsyncIterator[bytes]:
    yield bytes(SIZE)


def test_a_mesh_whose_disk_is_full_of_models_may_start_again() -> None:
    assert RESERVE_BYTES > MIN_FREE_BYTES


async def test_an_object_leaves_the_reserve_free(tmp_path: Path, free: Free) -> None:
    store = DirectoryStore(tmp_path)
    free(RESERVE_BYTES + SIZE - 1)
    with pytest.raises(StoreFullError, match="stay free"):
        await store.stage(chunks(), expected_size=SIZE)
    with pytest.raises(StoreFullError, match="stay free"):
        await store.parts.create("0" * 32, PartLayout(SIZE, SIZE))
    free(RESERVE_BYTES + SIZE)
    await (await store.stage(chunks(), expected_size=SIZE)).discard()
    await store.parts.create("0" * 32, PartLayout(SIZE, SIZE))


async def test_a_fetch_of_unknown_size_leaves_the_reserve_free(
    tmp_path: Path, free: Free, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.room.STEP_BYTES", SIZE)
    row = TransferRow(model_uuid="m1", attempt=1)
    room = Room(DirectoryStore(tmp_path), None, RetryBackoffs(lambda: 0.0))
    free(RESERVE_BYTES + SIZE)
    await room.extend(row, SIZE)
    with pytest.raises(StoreFullError, match="bytes free for models"):
        await room.extend(row, 1)


def test_a_job_leaves_the_reserve_free(tmp_path: Path, free: Free) -> None:
    settings = Settings(home=tmp_path)
    free(RESERVE_BYTES + SIZE)
    assert submission.space_for_jobs(settings, []) == SIZE
    free(RESERVE_BYTES - 1)
    assert submission.space_for_jobs(settings, []) == 0


def test_the_cache_of_a_small_disk_leaves_the_reserve_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = DiskSpace(RESERVE_BYTES + SIZE, 2 * RESERVE_BYTES)
    monkeypatch.setattr("llamesh.kit.objects.cache_eviction.disk_space", lambda _: space)
    cache = CacheEviction(tmp_path, tmp_path / "staging", 0, lambda: 0.0)
    with cache.reserved(SIZE):
        pass
    with pytest.raises(StoreFullError), cache.reserved(SIZE + 1):
        pass
