"""A transfer waits for an object store that does not work, and the health service says so.

The S3 server is the fake of tests/unit; the same faults on a real MinIO are in tests/cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llamesh.kit.channels import channel
from llamesh.v1 import download_pb2 as pb
from services.download import service as wiring
from services.download.retry_backoffs import RetryBackoffs
from tests.contract.download.conftest import ENDED, Service
from tests.contract.download.faults import Faults, faults, on_s3, s3
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.patience import PATIENCE, until
from tests.unit.fake_s3 import FakeS3

__all__ = ["faults", "on_s3", "s3"]


async def store_is_well(service: Service, part: str = "store") -> bool | None:
    """What health says of a part; None: nothing yet, the store was not asked so far."""
    async with channel(service.settings, "download", "gateway") as connection:
        request = health_pb2.HealthCheckRequest(service=part)
        try:
            answer = await health_pb2_grpc.HealthStub(connection).Check(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def health_turns(service: Service, well: bool, part: str = "store") -> None:
    async with asyncio.timeout(PATIENCE):
        while await store_is_well(service, part) is not well:
            await asyncio.sleep(0.02)


class RetryClock:
    """The clock of the waits before retries, in seconds. It stands still until a test moves it, so that no retry comes before."""

    seconds = 0.0


@pytest.fixture
def retries(monkeypatch: pytest.MonkeyPatch) -> RetryClock:
    found = RetryClock()
    monkeypatch.setattr(wiring, "RetryBackoffs", lambda clock: RetryBackoffs(lambda: found.seconds))
    return found


async def test_a_transfer_waits_for_a_store_that_goes_away_and_goes_on(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults, retries: RetryClock
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await on_s3()
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    s3.refuse = dict.fromkeys(("GET", "HEAD", "PUT", "POST"), (503, "SlowDown"))
    web.go_on.set()
    async with asyncio.timeout(PATIENCE):
        while not (waiting := await service.get("m1")).error.reason:
            await asyncio.sleep(0.02)
    assert (waiting.state, waiting.error.reason) == (pb.DOWNLOAD_STATE_QUEUED, "STORE_UNAVAILABLE")
    assert waiting.error.message.startswith("waits for the object store: ")
    assert "HTTPConnectionPool" not in waiting.error.message
    await health_turns(service, well=False)
    s3.refuse = {}
    retries.seconds += 3600.0
    found = await service.state("m1")
    assert (found.state, found.error.reason, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, "", 1)
    await health_turns(service, well=True)


class Later:
    """The waits of the service, and by how many seconds its clock is ahead."""

    waits: RetryBackoffs
    seconds = 0.0


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    found = Later()

    def make(clock: Callable[[], float]) -> RetryBackoffs:
        found.waits = RetryBackoffs(clock)
        return found.waits

    monkeypatch.setattr(wiring, "monotonic", lambda: time.monotonic() + found.seconds)
    monkeypatch.setattr(wiring, "RetryBackoffs", make)
    return found


async def setback(service: Service, number: int) -> None:
    """Wait until an attempt has failed: the transfer is queued, or has begun again already."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await service.get("m1")
            if found.state in (pb.DOWNLOAD_STATE_QUEUED, *ENDED) or found.resume_count >= number:
                return
            await asyncio.sleep(0.01)


async def test_a_transfer_does_not_fail_for_setbacks_between_which_the_store_worked(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults, later: Later
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await on_s3()
    await service.start("m1", web.url("a.gguf"))
    for setbacks in (1, 2):
        await web.holding.wait()
        web.holding.clear()
        if setbacks == 2:
            web.hold_after.clear()
        later.seconds += 700.0
        s3.refuse = {"PUT": (503, "SlowDown")}
        # Only the answer that waits goes on; the next attempt may come before the next line.
        web.go_on.set()
        web.go_on.clear()
        await setback(service, setbacks)
        s3.refuse = {}
    found = await service.state("m1")
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    # More if an attempt began before the store was well again.
    assert found.resume_count >= 2


async def test_nothing_is_kept_of_a_transfer_that_was_set_back_and_cancelled(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults, later: Later
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await on_s3()
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    s3.refuse = dict.fromkeys(("GET", "HEAD", "PUT", "POST"), (503, "SlowDown"))
    web.go_on.set()
    await until(lambda: later.waits.of_store)
    await service.cancel("m1")
    s3.refuse = {}
    await until(lambda: not later.waits.of_store)


async def test_wrong_credentials_are_seen_in_health(
    on_s3: Callable[[], Awaitable[Service]], s3: FakeS3, faults: Faults
) -> None:
    s3.refuse = {"GET": (403, "InvalidAccessKeyId"), "HEAD": (403, "InvalidAccessKeyId")}
    service = await on_s3()
    await health_turns(service, well=False, part="store.credentials")
    await health_turns(service, well=False)
    s3.refuse = {}
    await health_turns(service, well=True, part="store.credentials")
    await health_turns(service, well=True)
