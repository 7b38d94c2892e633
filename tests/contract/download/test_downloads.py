"""Downloads over a real channel: bytes come in whole, verified and once; who asks again, cancels or restarts leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2 as pb
from llamesh.v1.download_pb2_grpc import DownloadServiceStub
from tests.contract.conftest import AsCaller, Connect, StartStandings
from tests.contract.download.conftest import ENDED, TINY, Open, Service, import_file, sha256
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.patience import PATIENCE, available
from tests.contract.rich_status import refused
from tests.files import files_below
from tests.unit.gguf_bytes import STRING, U32, File, pair


async def test_a_file_becomes_a_model(service: Service) -> None:
    path = import_file(service, "My Model.gguf", TINY)
    download = await service.fetched("m1", path)
    assert (download.state, download.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(TINY))
    assert (download.bytes_done, download.bytes_total) == (len(TINY), len(TINY))
    model = await service.model("m1")
    assert (model.model_uuid, model.name, model.size_bytes) == ("m1", "My-Model.gguf", len(TINY))
    assert (model.sha256, model.source) == (sha256(TINY), Path(path).name)
    assert (model.gguf.architecture, model.gguf.layer_count, model.gguf.kv_head_count) == ("llama", 2, 2)
    assert (await service.path("m1")).read_bytes() == TINY


async def test_a_url_becomes_a_model_under_the_name_asked_for(service: Service, web: ModelServer) -> None:
    web.files["dir/a.gguf"] = TINY
    download = await service.fetched(
        "m1", web.url("dir/a.gguf?sig=secret"), name="Qwen3:0.6b", sha256=sha256(TINY).upper()
    )
    assert (download.state, download.name) == (pb.DOWNLOAD_STATE_SUCCEEDED, "Qwen3:0.6b")
    assert download.source == web.url("dir/a.gguf")
    assert (await service.model("m1")).name == "Qwen3:0.6b"


async def test_a_wrong_digest_fails_and_leaves_nothing(service: Service) -> None:
    download = await service.fetched("m1", import_file(service, "a.gguf", TINY), sha256="0" * 64)
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "CONTENT_MISMATCH")
    assert sha256(TINY) in download.error.message
    assert download.error.remedy
    assert service.stored == []
    with refused("MODEL_NOT_FOUND"):
        await service.model("m1")
    with refused("MODEL_NOT_FOUND"):
        await service.path("m1")


NOT_SERVED = {
    "an HTML page": (b"<!DOCTYPE html><html>Sign in</html>" + bytes(2000), "not a GGUF file"),
    "an empty file": (b"", "the file ends here"),
    "three bytes": (b"GGU", "the file ends here"),
    "the first half": (TINY[: len(TINY) // 2], "the file ends here"),
    "one byte short": (TINY[:-1], "truncated: 1 bytes"),
    "a hostile count": (TINY[:8] + b"\xff" * 8 + TINY[16:], "tensors, at most"),
    "an adapter": (File().adding(pair("general.type", STRING, "adapter")), "not a model that can be served"),
    "a part of a split model": (File().adding(pair("split.count", U32, 3)), "part 1 of a model split in 3"),
}


@pytest.mark.parametrize("case", NOT_SERVED)
async def test_a_model_that_llama_cpp_cannot_load_is_refused(sqlite_service: Service, case: str) -> None:
    data, problem = NOT_SERVED[case]
    download = await sqlite_service.fetched("m1", import_file(sqlite_service, "a.gguf", data))
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_INVALID")
    assert problem in download.error.message
    assert sqlite_service.stored == []


async def test_concurrent_requests_cause_one_download(service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = TINY
    web.hold_after["a.gguf"] = 64
    answers = await asyncio.gather(*(service.start("m1", web.url("a.gguf")) for _ in range(20)))
    await web.holding.wait()
    assert len({answer.create_time.ToNanoseconds() for answer in answers}) == 1
    web.go_on.set()
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    again = await service.start("m1", web.url("a.gguf"))
    assert (again.state, web.asked) == (pb.DOWNLOAD_STATE_SUCCEEDED, ["a.gguf"])


async def test_another_source_or_digest_is_a_conflict_while_it_runs_and_after(
    service: Service, web: ModelServer
) -> None:
    web.files["a.gguf"] = TINY
    web.hold_after["a.gguf"] = 64
    await service.start("m1", web.url("a.gguf?sig=secret"))
    await web.holding.wait()
    with refused("DOWNLOAD_CONFLICT") as refusal:
        await service.start("m1", web.url("b.gguf"))
    assert refusal.metadata == {"modelUuid": "m1", "source": web.url("a.gguf"), "state": "RUNNING"}
    web.go_on.set()
    await service.state("m1")
    for conflict in ({"source": web.url("b.gguf")}, {"sha256": "1" * 64}):
        with refused("DOWNLOAD_CONFLICT"):
            await service.start("m1", **conflict)
    await service.start("m1", sha256=sha256(TINY))


async def test_after_a_failure_another_source_may_be_named(service: Service, web: ModelServer) -> None:
    await service.fetched("m1", web.url("wrong.gguf"), sha256="0" * 64, name="Wrong")
    web.files["right.gguf"] = TINY
    download = await service.fetched("m1", web.url("right.gguf"))
    assert (download.state, download.name) == (pb.DOWNLOAD_STATE_SUCCEEDED, "right.gguf")


async def test_progress_is_seen_while_bytes_come(
    service: Service, web: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.progress.WINDOW_SECONDS", 10 * PATIENCE)
    big = model_bytes("big", 3 << 20)
    web.files["a.gguf"] = big
    web.hold_after["a.gguf"] = 2 << 20
    started = await service.start("m1", web.url("a.gguf"))
    assert started.state == pb.DOWNLOAD_STATE_QUEUED
    async with asyncio.timeout(PATIENCE):
        while (running := await service.get("m1")).bytes_done < 2 << 20:
            await asyncio.sleep(0.01)
    assert (running.state, running.bytes_done, running.bytes_total) == (pb.DOWNLOAD_STATE_RUNNING, 2 << 20, len(big))
    assert running.bytes_per_second > 0
    with refused("MODEL_NOT_READY"):
        await service.model("m1")
    with refused("MODEL_NOT_READY"):
        await service.delete("m1")
    web.go_on.set()
    assert (await service.state("m1")).bytes_per_second == 0


async def test_a_cancelled_download_leaves_nothing_and_can_be_started_again(service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    for _ in range(2):
        assert (await service.cancel("m1")).state == pb.DOWNLOAD_STATE_CANCELLED
    await service.no_files()
    with refused("MODEL_NOT_FOUND"):
        await service.model("m1")
    web.go_on.set()
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await service.cancel("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    with refused("DOWNLOAD_NOT_FOUND"):
        await service.cancel("m2")


async def test_a_restart_in_the_middle_starts_the_transfer_again(
    service: Service, web: ModelServer, open_service: Open, stop_member: Callable[[Member], Awaitable[None]]
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    await service.start("m1", web.url("a.gguf"), sha256=sha256(web.files["a.gguf"]))
    await web.holding.wait()
    await stop_member(service.member)
    await service.no_files()
    web.go_on.set()
    again = await open_service()
    download = await again.state("m1")
    assert (download.state, download.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, 1)
    assert web.asked == ["a.gguf", "a.gguf"]
    assert [path.name.partition("-")[0] for path in again.stored] == [download.sha256]


async def test_a_killed_process_leaves_a_transfer_that_the_next_one_finishes(
    settings: Settings, web: ModelServer, connect: Connect, as_caller: AsCaller, start_standings: StartStandings
) -> None:
    await start_standings(settings)
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    environment = {
        **os.environ,
        "LLAMESH_HOME": str(settings.home),
        "LLAMESH_HTTP_SOURCE_HOSTS": web.host,
        **({"DATABASE_URL": settings.database_url.get_secret_value()} if settings.database_url else {}),
    }

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(sys.executable, "-m", "services.download", env=environment)

    caller = as_caller("ada", "manage")
    request = pb.StartDownloadRequest(model_uuid="m1", source=web.url("a.gguf"))
    patient: dict[str, Any] = {"metadata": caller, "wait_for_ready": True, "timeout": PATIENCE}
    process = await start()
    try:
        downloads = DownloadServiceStub(connect(settings, "download"))
        # A busy process may not know yet what its callers may do.
        await available(lambda: downloads.StartDownload(request, **patient))
        async with asyncio.timeout(PATIENCE):
            while not any(path.stat().st_size for path in files_below(settings.home / "objects")):
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert [path.suffix for path in files_below(settings.home / "objects")] == [".part"]
        web.go_on.set()
        process = await start()
        downloads = DownloadServiceStub(connect(settings, "download"))
        asked = pb.GetDownloadRequest(model_uuid="m1")
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await available(lambda: downloads.GetDownload(asked, **patient))
                if found.state in ENDED:
                    break
                await asyncio.sleep(0.02)
        assert (found.state, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, 1)
        assert [path.suffix for path in files_below(settings.home / "objects")] == [".gguf"]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
