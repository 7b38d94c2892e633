"""A watch of jobs: what is there, every change, the end, and who may have it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from llamesh.client import errors
from llamesh.client.aio.quant import AsyncQuant
from llamesh.client.silence import Silence
from llamesh.v1 import quant_pb2
from tests.contract.conftest import AsCaller
from tests.contract.patience import PATIENCE
from tests.contract.quant.conftest import ENDED, Quant
from tests.contract.rich_status import read_refusal


@asynccontextmanager
async def watching(quant: Quant, job_id: str = "", caller: Any = None) -> AsyncIterator[Any]:
    """Return the next message of a watch at each call, heartbeats left out; EOF at its end."""
    request = quant_pb2.WatchQuantJobsRequest(job_id=job_id)
    call = quant.stub.WatchQuantJobs(request, metadata=caller or quant.caller, wait_for_ready=True)

    async def following() -> Any:
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await call.read()
                if message is grpc.aio.EOF or not message.heartbeat:
                    return message

    try:
        yield following
    finally:
        call.cancel()


async def test_a_watch_of_one_job_shows_its_steps_and_ends_with_it(quant: Quant) -> None:
    quant.fault.write_text("hang")
    job = await quant.create("Q8_0")
    async with watching(quant, job.job_id) as following:
        while not any(step.done for step in (await following()).job.steps[1:]):
            pass
        quant.fault.unlink()
        last = None
        while (message := await following()) is not grpc.aio.EOF:
            last = message
    assert last.job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED
    # The same as from a call, with the lines of its steps.
    assert last.job == await quant.job(job.job_id)


async def test_a_watch_shows_all_jobs_then_every_change_and_removal(quant: Quant) -> None:
    first = await quant.ended((await quant.create("Q8_0")).job_id)
    await quant.tidy(1)
    async with watching(quant) as following:
        listed = await following()
        assert (listed.job.job_id, listed.job.state) == (first.job_id, quant_pb2.QUANT_JOB_STATE_SUCCEEDED)
        assert (await following()).synced
        # What was refused, was there already or never existed has changed no job.
        with pytest.raises(grpc.aio.AioRpcError):
            await quant.create("Q8_0")
        with pytest.raises(grpc.aio.AioRpcError):
            await quant.call("CancelQuantJob", quant_pb2.CancelQuantJobRequest(job_id="job_000000000000"))
        second = await quant.create("Q4_0", request_id="once")
        assert (await quant.create("Q4_0", request_id="once")).job_id == second.job_id
        states = []
        while not states or states[-1] not in ENDED:
            message = await following()
            assert message.job.job_id == second.job_id
            states.append(message.job.state)
        assert quant_pb2.QUANT_JOB_STATE_RUNNING in states
        await quant.call("DeleteQuantJob", quant_pb2.DeleteQuantJobRequest(job_id=first.job_id))
        while (message := await following()).WhichOneof("event") == "job":
            pass
        assert message.removed_job_id == first.job_id


async def test_a_watch_of_no_job_is_refused_and_watches_are_limited(quant: Quant, as_caller: AsCaller) -> None:
    async with watching(quant, "nobody") as following:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await following()
    assert read_refusal(raised.value).reason == "QUANT_JOB_NOT_FOUND"
    async with watching(quant, caller=as_caller("ada", "inference")) as following:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await following()
    assert read_refusal(raised.value).reason == "SCOPE_MISSING"
    calls = [quant.stub.WatchQuantJobs(quant_pb2.WatchQuantJobsRequest(), metadata=quant.caller) for _ in range(16)]
    for call in calls:
        assert (await call.read()).synced
    async with watching(quant) as following:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await following()
    assert read_refusal(raised.value).reason == "TOO_MANY_WATCHES"
    for call in calls:
        call.cancel()


async def test_a_wait_outlasts_the_limit_of_watches(quant: Quant) -> None:
    """Through the client, whose calls get the headers of the front door here."""
    job = await quant.ended((await quant.create("Q8_0")).job_id)
    refused = asyncio.Event()

    class Transport:
        call = None
        silence = Silence()

        async def stream(self, method: str, request: Any, answer: Any, deadline: float | None) -> AsyncIterator[Any]:
            call = quant.stub.WatchQuantJobs(request, metadata=quant.caller, timeout=deadline)
            try:
                async for event in call:
                    yield event
            except grpc.RpcError as failure:
                refused.set()
                raise errors.of_call(failure) from failure

    waiter = AsyncQuant(Transport())  # type: ignore[arg-type]
    calls = [quant.stub.WatchQuantJobs(quant_pb2.WatchQuantJobsRequest(), metadata=quant.caller) for _ in range(16)]
    for call in calls:
        await call.read()
    with pytest.raises(errors.TooManyWatches):
        await anext(waiter.watch(job.job_id))
    refused.clear()
    waiting = asyncio.create_task(waiter.wait(job.job_id, timeout=PATIENCE))
    await refused.wait()
    for call in calls:
        call.cancel()
    assert (await waiting).state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED


async def test_a_watch_ends_with_the_token_of_its_reader(
    quant: Quant, as_caller: AsCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamesh.kit.rights.CLOCK_SKEW_SECONDS", 0.0)
    for lifetime in (1.5, 15.0):
        own = as_caller("ada", "manage", exp=time.time() + lifetime)
        call = quant.stub.WatchQuantJobs(quant_pb2.WatchQuantJobsRequest(), metadata=own)
        with suppress(grpc.aio.AioRpcError):
            assert (await call.read()).synced
            break
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async with asyncio.timeout(PATIENCE):
            while await call.read() is not grpc.aio.EOF:
                pass
    assert read_refusal(ended.value).reason == "UNAUTHENTICATED"
