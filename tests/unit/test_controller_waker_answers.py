"""HTTP answers of the waker to Envoy: OpenAI's format, the retry header, dropped bodies, clients that disconnect."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from controller.demand import Demand
from controller.request_holder import DEFAULT_BUDGET, RequestHolder
from controller.status_cache import StatusCache
from controller.wake_tasks import WakeTasks
from controller.waker import Waker
from llamesh.names import AWAKE_HEADER, CLUSTER_HEADER, HELD_SINCE_HEADER, SCOPES_HEADER
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Condition, Server, ServerSpec


class Bench:
    """A waker on a real socket, with a status cache that the test writes."""

    def __init__(self, statuses: StatusCache, holder: RequestHolder, session: aiohttp.ClientSession) -> None:
        self.statuses = statuses
        self.holder = holder
        self.session = session

    async def post(self, cluster: str, **more: Any) -> tuple[int, Mapping[str, str], Any]:
        body = more.pop("data", b"{}")
        headers = {CLUSTER_HEADER: cluster, **more.pop("headers", {})}
        async with self.session.post("/v1/chat/completions", data=body, headers=headers) as answer:
            return answer.status, answer.headers, await answer.json()

    async def get(self, path: str, scopes: str | None = "infer:*") -> tuple[int, Any]:
        async with self.session.get(path, headers={} if scopes is None else {SCOPES_HEADER: scopes}) as answer:
            return answer.status, await answer.json()

    async def names(self, path: str, scopes: str | None) -> list[str]:
        return [model["id"] for model in (await self.get(path, scopes))[1]["data"]]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    statuses = StatusCache()

    async def wake(server_uuid: str) -> None: ...

    demand = Demand()
    holder = RequestHolder(statuses, demand, WakeTasks(wake, demand), lambda _: None, max_held=2)
    waker = Waker(holder, statuses, tmp_path / "waker.sock")
    await waker.start()
    connector = aiohttp.UnixConnector(str(tmp_path / "waker.sock"), force_close=True)
    async with aiohttp.ClientSession("http://waker", connector=connector) as session:
        yield Bench(statuses, holder, session)
    await waker.close()


def server(uuid: str = "a", name: str = "smol", state: int = server_pb2.SERVER_STATE_STARTING, **more: Any) -> Server:
    condition = Condition(type="Ready", reason=more.pop("reason", "Starting"), message=more.pop("message", ""))
    found = Server(server_uuid=uuid, model_name=name, state=state, spec=ServerSpec(), conditions=[condition], **more)  # type: ignore[arg-type]
    found.create_time.seconds = 1000 + ord(uuid[0])
    return found


async def test_an_engine_that_is_ready_means_try_again(bench: Bench) -> None:
    bench.statuses.put(server(ready_replicas=1))
    status, headers, body = await bench.post("s:a")
    assert (status, headers[AWAKE_HEADER]) == (503, "1")
    assert body["error"]["code"] == "engine_ready"


@pytest.mark.parametrize(
    ("cluster", "param", "code"), [("m:other", "model", "model_not_found"), ("s:x", None, "server_not_found")]
)
async def test_a_server_or_model_that_is_not_declared_is_404(
    bench: Bench, cluster: str, param: str | None, code: str
) -> None:
    status, headers, body = await bench.post(cluster)
    assert status == 404
    assert AWAKE_HEADER not in headers
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)
    assert body["error"].keys() == {"message", "type", "param", "code"}


async def test_an_engine_that_fails_is_503_with_the_reason_and_a_time(bench: Bench) -> None:
    bench.statuses.put(server(state=server_pb2.SERVER_STATE_FAILING, reason="BadModel", message="no such tensor"))
    status, headers, body = await bench.post("s:a")
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert AWAKE_HEADER not in headers
    assert "no such tensor" in body["error"]["message"]


async def test_too_many_at_once_are_429(bench: Bench) -> None:
    bench.statuses.put(server())
    held = [asyncio.create_task(bench.post("s:a")) for _ in range(2)]
    await until(bench, 2)
    status, headers, body = await bench.post("s:a")
    assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    assert int(headers["retry-after"]) > 0
    bench.statuses.put(server(ready_replicas=1))
    assert [answer[0] for answer in await asyncio.gather(*held)] == [503, 503]


async def test_a_client_that_leaves_is_held_no_longer(bench: Bench) -> None:
    bench.statuses.put(server())
    held = asyncio.create_task(bench.post("s:a"))
    await until(bench, 1)
    held.cancel()
    await until(bench, 0)


async def test_the_time_a_request_has_already_waited_counts(bench: Bench) -> None:
    bench.statuses.put(server(message="its model is read"))
    for since in (str(time.time() - DEFAULT_BUDGET - 1), "1.5"):
        status, headers, body = await bench.post("s:a", headers={HELD_SINCE_HEADER: since})
        assert (status, body["error"]["code"]) == (503, "engine_not_ready")
        assert AWAKE_HEADER not in headers
    # A clock that was set back, or no valid time, gives the whole budget.
    for since in (str(time.time() + 1000), "soon"):
        held = asyncio.create_task(bench.post("s:a", headers={HELD_SINCE_HEADER: since}))
        await until(bench, 1)
        held.cancel()
        await until(bench, 0)


async def until(bench: Bench, held: int) -> None:
    async with asyncio.timeout(5):
        while bench.holder.held != held:
            await asyncio.sleep(0.005)


async def test_a_large_body_costs_no_memory(bench: Bench) -> None:
    bench.statuses.put(server(ready_replicas=1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def chunks() -> AsyncIterator[bytes]:
        piece = bytes(1 << 16)
        for _ in range(1600):
            yield piece

    status, headers, _ = await bench.post("s:a", data=chunks())
    assert (status, headers[AWAKE_HEADER]) == (503, "1")
    # 100 MiB went through; ru_maxrss counts KiB on Linux.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024


async def test_each_name_is_listed_once_awake_or_not(bench: Bench) -> None:
    assert await bench.get("/v1/models") == (200, {"object": "list", "data": []})
    bench.statuses.put(server("b", "smol"))
    bench.statuses.put(server("a", "smol", server_pb2.SERVER_STATE_SLEEPING))
    bench.statuses.put(server("c", "org/big:q4"))
    bench.statuses.put(server("d", "going", server_pb2.SERVER_STATE_STOPPING, reason="Stopping"))
    smol = {"id": "smol", "object": "model", "created": 1097, "owned_by": "llamesh"}
    big = {"id": "org/big:q4", "object": "model", "created": 1099, "owned_by": "llamesh"}
    assert await bench.get("/v1/models") == (200, {"object": "list", "data": [big, smol]})
    assert await bench.get("/v1/models/org/big:q4") == (200, big)
    assert await bench.get("/c/v1/models") == (200, {"object": "list", "data": [big]})
    assert (await bench.get("/v1/models/going"))[0] == 404
    status, body = await bench.get("/x/v1/models")
    assert (status, body["error"]["code"]) == (404, "server_not_found")
    status, body = await bench.get("/c/v1/models/smol")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_every_refusal_has_the_shape_of_the_api(bench: Bench) -> None:
    for path in ("/v1/models/%0d%0aX:y", "/a/v1/models/%0a", "/v1/models/", "/%0a/v1/models", "/v1", "/v1/x%0ay", "//"):
        status, body = await bench.get(path)
        assert (status, set(body["error"])) == (404, {"message", "type", "param", "code"}), path
        assert body["error"]["type"] == "invalid_request_error"
    assert (await bench.get("/v1/messages/x%0ay"))[1]["error"].keys() == {"type", "message"}
    async with bench.session.put("/v1/models/smol") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")


async def test_a_list_shows_only_the_models_that_the_caller_may_use(bench: Bench) -> None:
    bench.statuses.put(server("a", "smol"))
    bench.statuses.put(server("b", "org/big:q4"))
    assert await bench.names("/v1/models", "infer:*") == ["org/big:q4", "smol"]
    assert await bench.names("/v1/models", "infer:smol") == ["smol"]
    assert await bench.names("/v1/models", "infer:org/big:q4,infer:gone") == ["org/big:q4"]
    assert await bench.names("/v1/models", "infer:odd%2Cinfer:%2A,infer:smo") == []
    for nothing in (None, "", "infer:a", "manage,admin"):
        assert await bench.names("/v1/models", nothing) == []
        assert (await bench.get("/v1/models/smol", nothing))[1] == (await bench.get("/v1/models/smol", "infer:x"))[1]
        assert (await bench.get("/v1/models/smol", nothing))[0] == 404
    assert (await bench.get("/v1/models/smol", "infer:smol"))[0] == 200
    assert (await bench.get("/v1/models/org/big:q4", "infer:smol"))[0] == 404
    assert await bench.names("/a/v1/models", "infer:a") == ["smol"]
    assert (await bench.get("/a/v1/models", "infer:b,infer:smol"))[0] == 404
    assert (await bench.get("/a/v1/models/smol", "infer:a"))[0] == 200


async def test_a_token_with_many_scopes_lists_the_models_it_may_use(bench: Bench) -> None:
    bench.statuses.put(server("a", "smol"))
    many = ",".join([*(f"infer:{'x' * 120}{number}" for number in range(100)), "infer:smol"])
    assert await bench.names("/v1/models", many) == ["smol"]


async def test_a_waker_whose_socket_vanishes_listens_again_and_keeps_the_requests_it_holds(
    bench: Bench, tmp_path: Path
) -> None:
    bench.statuses.put(server())
    held = asyncio.create_task(bench.post("s:a"))
    async with asyncio.timeout(10):
        while not bench.holder.held:
            await asyncio.sleep(0.005)
        (tmp_path / "waker.sock").unlink()
        while not (tmp_path / "waker.sock").exists():
            await asyncio.sleep(0.005)
        assert (await bench.get("/v1/models"))[0] == 200
        bench.statuses.put(server(state=server_pb2.SERVER_STATE_READY, ready_replicas=1))
        status, headers, _ = await held
    assert (status, headers[AWAKE_HEADER]) == (503, "1")


async def test_a_models_name_may_have_an_encoded_slash(bench: Bench) -> None:
    bench.statuses.put(server(name="org/name:tag"))
    for path in ("org/name:tag", "org%2Fname:tag", "org%2fname%3Atag"):
        url = URL(f"/v1/models/{path}", encoded=True)
        async with bench.session.get(url, headers={SCOPES_HEADER: "infer:*"}) as answer:
            assert (answer.status, (await answer.json())["id"]) == (200, "org/name:tag")


async def test_health_is_said_as_llama_server_says_it(bench: Bench) -> None:
    assert await bench.get("/health") == (200, {"status": "ok"})
    async with bench.session.head("/health") as answer:
        assert answer.status == 200


async def test_a_refusal_of_anthropics_api_has_its_shape(bench: Bench) -> None:
    async with bench.session.post("/v1/messages", data=b"", headers={CLUSTER_HEADER: "m:nobody"}) as answer:
        body = await answer.json()
    assert (answer.status, body.keys(), body["error"]["type"]) == (404, {"type", "error"}, "not_found_error")
