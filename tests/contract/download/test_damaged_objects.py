"""An object that is missing or damaged is said so with its model, and repaired by downloading again."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.objects.s3 import _Staged as S3Staged
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import TINY, OpenWith, Service, import_file, sha256
from tests.contract.download.faults import Faults, faults, on_s3, s3
from tests.contract.model_source import ModelServer
from tests.contract.patience import PATIENCE, until
from tests.contract.rich_status import refused
from tests.unit.fake_s3 import FakeS3

__all__ = ["faults", "on_s3", "s3"]


async def problems(service: Service) -> dict[str, str]:
    """What the list of models says against each."""
    listed = await service.catalogue.ListCatalogueModels(pb.ListCatalogueModelsRequest())
    return {model.model_uuid: model.problem for model in listed.models}


async def test_a_bucket_that_was_deleted_is_made_again_and_its_models_say_so(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    web.files["a.gguf"] = web.files["b.gguf"] = TINY
    service = await on_s3()
    await service.fetched("m1", web.url("a.gguf"))
    s3.buckets.clear()
    s3.objects.clear()
    assert await problems(service) == {"m1": ""}
    with refused("MODEL_CORRUPT") as refusal:
        await service.path("m1")
    assert refusal.metadata == {"modelUuid": "m1"}
    assert "cannot be used" in (await problems(service))["m1"]
    said = await service.get("m1")
    assert (said.state, said.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_CORRUPT")
    assert "Download the model again" in said.error.remedy
    # What is new does not wait for a restart.
    assert (await service.fetched("m2", web.url("b.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert s3.buckets == {"inference-models"}
    # The same bytes are there again: asking for the first one repairs it without a second object.
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await service.path("m1")).read_bytes() == TINY
    assert len(s3.objects) == 1
    assert await problems(service) == {"m1": "", "m2": ""}


async def test_a_success_that_is_seen_has_left_nothing_staged(
    on_s3: Callable[[], Awaitable[Service]],
    web: ModelServer,
    s3: FakeS3,
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    discard = S3Staged.discard

    async def slow(staged: S3Staged) -> None:
        await asyncio.sleep(0.3)
        await discard(staged)

    monkeypatch.setattr(S3Staged, "discard", slow)
    web.files["a.gguf"] = TINY
    service = await on_s3()
    assert (await service.fetched("m1", web.url("a.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert list(s3.objects.values()) == [TINY]


async def test_a_damaged_object_is_read_once_and_repaired_by_downloading_again(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    web.files["a.gguf"] = TINY
    service = await on_s3()
    for name in ("m1", "m2"):
        await service.fetched(name, web.url("a.gguf"))
    [key] = s3.objects
    s3.objects[key] = TINY[:-1] + b"X"
    for name in ("m1", "m1", "m2", "m1"):
        with refused("MODEL_CORRUPT"):
            await service.path(name)
    assert len([path for method, path in s3.requests if method == "GET" and key in path]) == 1
    assert (await service.get("m1")).error.reason == "MODEL_CORRUPT"
    # Both share the object, and what is known of it.
    assert all((await problems(service)).values())
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    while not (await stream.read()).synced:
        pass
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert not any((await problems(service)).values())
    sound = set()
    async with asyncio.timeout(PATIENCE):
        while sound != {"m1", "m2"}:
            message = await stream.read()
            if message.HasField("model") and not message.model.problem:
                sound.add(message.model.model_uuid)
    stream.cancel()
    assert (await service.path("m1")).read_bytes() == TINY
    # The other model with the same bytes is repaired along with it.
    assert (await service.path("m2")).read_bytes() == TINY
    assert list(s3.objects) != [key]
    assert list(s3.objects.values()) == [TINY]


async def test_an_object_that_comes_back_heals_its_model(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    """As after a volume that was not mounted, or a backup that was restored."""
    web.files["a.gguf"] = TINY
    service = await on_s3()
    await service.fetched("m1", web.url("a.gguf"))
    kept = dict(s3.objects)
    s3.objects.clear()
    with refused("MODEL_CORRUPT"):
        await service.path("m1")
    assert (await problems(service))["m1"]
    s3.objects.update(kept)
    assert (await service.path("m1")).read_bytes() == TINY
    assert await problems(service) == {"m1": ""}
    assert (await service.get("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_asking_again_for_a_model_whose_object_is_gone_fetches_it(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    """Nobody had noticed: the record said SUCCEEDED until now."""
    web.files["a.gguf"] = TINY
    service = await on_s3()
    await service.fetched("m1", web.url("a.gguf"))
    s3.objects.clear()
    assert (await service.start("m1")).state == pb.DOWNLOAD_STATE_QUEUED
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await service.path("m1")).read_bytes() == TINY


async def test_a_local_copy_of_the_wrong_length_is_fetched_again(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, faults: Faults
) -> None:
    web.files["a.gguf"] = TINY
    service = await on_s3()
    await service.fetched("m1", web.url("a.gguf"))
    path = await service.path("m1")
    path.write_bytes(TINY[:100])
    assert (await service.path("m1")).read_bytes() == TINY


def _truncate(file: Path) -> None:
    os.truncate(file, 100)


def _alter(file: Path) -> None:
    file.write_bytes(TINY[:-1] + b"X")
    later = file.stat().st_mtime + 60
    os.utime(file, (later, later))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": _truncate,
    "altered": _alter,
    "deleted": lambda file: file.unlink(),
    "folder gone": lambda file: shutil.rmtree(file.parent.parent),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_file_of_a_directory_is_said_and_repaired(
    one_settings: Settings, open_with: OpenWith, faults: Faults, damage: str
) -> None:
    service = await open_with(one_settings)
    await service.fetched("m1", import_file(service, "a.gguf", TINY))
    [file] = service.stored
    DAMAGE[damage](file)
    for _ in range(3):
        with refused("MODEL_CORRUPT"):
            await service.path("m1")
    assert (await service.get("m1")).error.reason == "MODEL_CORRUPT"
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    path = await service.path("m1")
    assert sha256(path.read_bytes()) == sha256(TINY)
    await until(lambda: service.stored == [path])


async def test_a_full_disk_fails_a_transfer_in_words_and_the_next_one_succeeds(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["a.gguf"] = TINY
    service = await open_with(one_settings)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("llamesh.kit.objects.staging.os.write", full)
        found = await service.fetched("m1", web.url("a.gguf"))
    assert (found.error.reason, service.stored) == ("STORE_UNAVAILABLE", [])
    assert "No space left on device" in found.error.message
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
