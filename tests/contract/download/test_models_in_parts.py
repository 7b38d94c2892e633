"""A model in parts comes from any source as one model: complete and checked before its bytes move, one progress, one record."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from llamesh.kit.config import Settings
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2 as pb
from llamesh.v1 import model_pb2
from tests.contract.download.conftest import Open, OpenWith, Service, import_file, sha256
from tests.contract.model_source import ModelServer
from tests.contract.patience import PATIENCE
from tests.contract.ranged_source import ranged_server
from tests.split_models import Parts, part_name
from tests.unit.fake_hub import COMMIT, FakeHub, Repository, fake_hub

PARTS = Parts()
FILES = PARTS.files()
DATA = list(FILES.values())
LARGE = 4 << 20
PART = 1 << 20
PARALLEL = 2


def put(service: Service, files: dict[str, bytes]) -> str:
    """The path of the first of some files in the import folder."""
    return [import_file(service, name, data) for name, data in files.items()][0]  # noqa: RUF015 - all are written


async def check_model(service: Service, model_uuid: str = "m1") -> None:
    """The model has all parts, and llama.cpp finds them beside the first."""
    model = await service.model(model_uuid)
    assert model.size_bytes == sum(map(len, DATA))
    assert model.sha256 == sha256(DATA[0])
    assert [(file.sha256, file.size_bytes) for file in model.files] == [(sha256(data), len(data)) for data in DATA]
    assert [file.name for file in model.files] == list(FILES)
    assert {file.role for file in model.files} == {model_pb2.MODEL_FILE_ROLE_WEIGHTS}
    assert (model.gguf.tensor_count, model.gguf.tensor_bytes) == (3, 3 * PARTS.size)
    located = await service.catalogue.LocateModel(pb.LocateModelRequest(model_uuid=model_uuid))
    paths = [Path(path) for path in located.file_paths]
    assert located.path == located.file_paths[0]
    assert [path.name for path in paths] == [part_name("model", number, 3) for number in (1, 2, 3)]
    assert len({path.parent for path in paths}) == 1
    assert [path.read_bytes() for path in paths] == DATA


@pytest.mark.parametrize("named", [1, 3])
async def test_the_parts_beside_a_file_come_with_it(service: Service, named: int) -> None:
    put(service, FILES)
    folder = service.settings.home / "import"
    download = await service.fetched("m1", str(folder / part_name("tiny", named, 3)))
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert (download.name, download.sha256) == ("tiny.gguf", sha256(DATA[0]))
    assert download.bytes_done == download.bytes_total == sum(map(len, DATA))
    await check_model(service)
    # Another part of it is the same source.
    again = await service.start("m1", str(folder / part_name("tiny", 2, 3)))
    assert again.state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_the_parts_come_over_the_web(sqlite_service: Service, web: ModelServer) -> None:
    web.files |= FILES
    download = await sqlite_service.fetched("m1", web.url(part_name("tiny", 2, 3)) + "?signature=x")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    await check_model(sqlite_service)


async def test_the_parts_come_from_the_hub_at_one_commit(one_settings: Settings, open_with: OpenWith) -> None:
    async with fake_hub() as hub:
        hub.repositories["ada/tiny-GGUF"] = Repository({f"Q8_0/{name}": data for name, data in FILES.items()})
        service = await open_with(one_settings, hf_endpoint=hub.url)
        download = await service.fetched("m1", "hf:ada/tiny-GGUF")
        assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
        assert (download.name, download.revision) == ("tiny", COMMIT)
        await check_model(service)
        assert _listings(hub) == 1, "the listing of a commit never changes"
        await service.fetched("m2", f"hf:ada/tiny-GGUF/Q8_0/{part_name('tiny', 3, 3)}")
        await check_model(service, "m2")


def _listings(hub: FakeHub) -> int:
    return len([path for path, _ in hub.asked if path.startswith("/api/")])


def without(number: int) -> dict[str, bytes]:
    return {name: data for at, (name, data) in enumerate(FILES.items(), 1) if at != number}


def with_other(number: int, data: bytes) -> dict[str, bytes]:
    return FILES | {part_name("tiny", number, 3): data}


REFUSED = {
    "a missing part": (without(3), "SOURCE_REFUSED", "cannot open tiny-00003-of-00003.gguf"),
    "a part of another split": (with_other(3, Parts(4).part(3)), "MODEL_INVALID", "file 3 of 3 is not part 3"),
    "a part of another model": (
        with_other(3, Parts().part(3, tensor_name="blk.0.attn_q.weight")),
        "MODEL_INVALID",
        "its tensor blk.0.attn_q.weight is in file 1 too",
    ),
    "a part that is no GGUF file": (with_other(2, b"<html>" * 50), "MODEL_INVALID", "not a GGUF file"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_missing_or_foreign_part_is_refused_and_leaves_nothing(sqlite_service: Service, case: str) -> None:
    files, reason, problem = REFUSED[case]
    download = await sqlite_service.fetched("m1", put(sqlite_service, files))
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, reason)
    assert problem in download.error.message
    assert sqlite_service.stored == []
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await sqlite_service.model("m1")
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_foreign_last_part_costs_the_headers_only(one_settings: Settings, open_with: OpenWith) -> None:
    large = Parts(size=LARGE)
    parts = {f"/{name}": data for name, data in large.files().items()}
    parts[f"/{part_name('tiny', 3, 3)}"] = Parts(4, size=LARGE).part(3)
    async with ranged_server(b"") as source:
        source.files = parts
        service = await open_with(one_settings, http_source_hosts=(source.host,), download_part_bytes=PART)
        download = await service.fetched("m1", f"http://{source.host}/{part_name('tiny', 1, 3)}")
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_INVALID")
    assert source.ranges == [], "nothing but the beginnings was read"
    assert service.stored == []


async def test_the_progress_is_that_of_all_parts(sqlite_service: Service, web: ModelServer) -> None:
    files = Parts(size=2 << 20).files()
    total = sum(map(len, files.values()))
    web.files |= files
    last = part_name("tiny", 3, 3)
    web.hold_after[last] = len(files[last]) - 64
    await sqlite_service.start("m1", web.url(part_name("tiny", 1, 3)))
    async with asyncio.timeout(PATIENCE):
        while (now := await sqlite_service.get("m1")).bytes_done < total - 64:
            await asyncio.sleep(0.01)
    assert (now.bytes_done, now.bytes_total) == (total - 64, total)
    web.go_on.set()
    assert (await sqlite_service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_parts_are_shared_by_digest_and_go_with_the_last_model(service: Service) -> None:
    first = put(service, FILES)
    assert (await service.fetched("m1", first)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    # The first part alone differs.
    other = Parts(stem="other")
    named = {part_name("other", n, 3): other.part(n) for n in (2, 3)}
    first_of_other = PARTS.part(1).replace(b"tiny", b"tinz", 1)
    second = put(service, {part_name("other", 1, 3): first_of_other, **named})
    assert (await service.fetched("m2", second)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert len(service.stored) == 4
    await service.path("m1")
    await service.delete("m1")
    assert len(service.stored) == 3
    located = await service.catalogue.LocateModel(pb.LocateModelRequest(model_uuid="m2"))
    assert [Path(path).read_bytes() for path in located.file_paths] == [first_of_other, *DATA[1:]]
    await service.delete("m2")
    await service.no_files()


async def test_a_damaged_part_is_the_problem_of_its_model_and_is_repaired(service: Service) -> None:
    source = put(service, FILES)
    await service.fetched("m1", source)
    located = await service.catalogue.LocateModel(pb.LocateModelRequest(model_uuid="m1"))
    Path(located.file_paths[1]).resolve().unlink()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.path("m1")
    assert "m1 (file 2 of 3) cannot be used" in (refused.value.details() or "")
    model = await service.model("m1")
    assert [bool(file.problem) for file in model.files] == [False, True, False]
    assert "file 2 of 3" in model.problem
    assert (await service.get("m1")).state == pb.DOWNLOAD_STATE_FAILED
    assert (await service.fetched("m1", source)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    await check_model(service)
    assert (await service.model("m1")).problem == ""
    assert len(service.stored) == 3


async def test_the_links_of_a_model_that_is_gone_are_removed(
    service: Service, open_service: Open, stop_member: Callable[[Member], Awaitable[None]]
) -> None:
    await service.fetched("m1", put(service, FILES))
    link = await service.path("m1")
    await service.delete("m1")
    await stop_member(service.member)
    await open_service()
    async with asyncio.timeout(PATIENCE):
        while link.parent.parent.exists():
            await asyncio.sleep(0.01)
