"""Many at once: no stall behind kept connections, no 503 among mixed streams, both replicas used, one start for twenty first requests."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from engine.sentence import SENTENCE
from tests.mesh.conftest import Served
from tests.mesh.engines import stalls
from tests.mesh.running import RunningMesh
from tests.processes import ProcessSnapshot, mesh_processes, snapshots

PATIENCE = 60.0
"""Seconds that anything may take on a busy machine."""
LONG = 130_000
"""Tokens that no test waits for."""
MESSAGES = [{"role": "user", "content": "Hello!"}]


async def chat(
    client: httpx.AsyncClient, url: str, model: str, *, stream: bool = False, **more: Any
) -> tuple[int, str]:
    """Status and text of one chat."""
    body = {"model": model, "messages": MESSAGES, "stream": stream, **more}
    answer = await client.post(url, json=body)
    if answer.status_code != 200:
        return answer.status_code, answer.text
    if not stream:
        return 200, str(answer.json()["choices"][0]["message"]["content"]).strip()
    return 200, "[DONE]" if answer.text.rstrip().endswith("data: [DONE]") else answer.text


def client(connections: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        timeout=60, limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    )


async def test_twenty_at_once_on_four_slots_do_not_stall(served: Served) -> None:
    url = served.mesh.url("inference", "/v1/chat/completions")
    bursts: list[list[float]] = []

    async def ask(http: httpx.AsyncClient, started: float) -> float:
        assert await chat(http, url, served.model) == (200, SENTENCE)
        return time.perf_counter() - started

    for _ in range(5):
        async with client(20) as http:
            started = time.perf_counter()
            bursts.append(await asyncio.gather(*(ask(http, started) for _ in range(20))))
    # If Envoy kept its connections, each burst would stall; a single one may look so because the machine paused.
    assert stalls(bursts) <= 1, bursts


async def test_streams_and_plain_answers_mixed_never_fail(served: Served) -> None:
    url = served.mesh.url("inference", "/v1/chat/completions")
    gate = asyncio.Semaphore(4)

    async def one(number: int, http: httpx.AsyncClient) -> tuple[int, str]:
        async with gate:
            return await chat(http, url, served.model, stream=number % 2 == 0, max_tokens=3)

    async with client(4) as http:
        answers = await asyncio.gather(*(one(number, http) for number in range(480)))
    assert [answer for answer in answers if answer[0] != 200] == []


def engine_counts(mesh: RunningMesh, server_uuid: str, name: str) -> list[float]:
    """A counter of each replica, from its own metrics on its own socket."""
    counts = []
    for socket in sorted((mesh.home / "run" / "engines").glob(f"{server_uuid[:8]}-*.sock")):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=PATIENCE) as direct:
            text = direct.get("http://engine/metrics").text
        counts.append(float(text.split(f"\nllamacpp:{name} ")[1].split("\n")[0]))
    return counts


async def test_two_replicas_are_both_used(mesh: RunningMesh) -> None:
    server = mesh.serve("sentence", model_name="pair", replicas=2)
    try:
        async with client(16) as http:
            url = mesh.url("inference", "/v1/chat/completions")
            answers = await asyncio.gather(*(chat(http, url, "pair") for _ in range(32)))
        assert answers == [(200, SENTENCE)] * 32
        tokens = engine_counts(mesh, server["server_uuid"], "prompt_tokens_total")
        assert len(tokens) == 2
        assert min(tokens) > 0
    finally:
        mesh.call("DELETE", f"/stop/{server['server_uuid']}")


async def test_twenty_first_requests_wake_a_server_once(mesh: RunningMesh) -> None:
    server = mesh.serve("sentence", model_name="sleeper")
    uuid = server["server_uuid"]
    try:
        for path in ("/v1/chat/completions", f"/{uuid}/v1/chat/completions"):
            assert mesh.call("POST", f"/servers/{uuid}:sleep", json={}).status_code == 200
            mesh.until_state(uuid, "SERVER_STATE_SLEEPING")
            async with client(20) as http:
                url = mesh.url("inference", path)
                answers = await asyncio.gather(*(chat(http, url, "sleeper") for _ in range(20)))
            assert answers == [(200, SENTENCE)] * 20
            state = mesh.until_state(uuid, "SERVER_STATE_READY")
            assert [item["restarts"] for item in state["replica_statuses"]] == [0]
            assert len(engines(mesh, uuid)) == 1
    finally:
        mesh.call("DELETE", f"/stop/{uuid}")


def engines(mesh: RunningMesh, server_uuid: str) -> list[ProcessSnapshot]:
    """Engines of one server: wrappers whose specification is named after it."""
    return snapshots(lambda words: "engine" in words and server_uuid[:8] in words[-1], mesh_processes(mesh.home))


async def test_an_idle_server_sleeps_and_its_next_request_wakes_it(mesh: RunningMesh) -> None:
    server = mesh.serve("sentence", model_name="idler")
    uuid = server["server_uuid"]
    try:
        assert mesh.call("PATCH", f"/servers/{uuid}", json={"idle_sleep": "1s"}).status_code == 200
        mesh.until_state(uuid, "SERVER_STATE_SLEEPING")
        async with client(1) as http:
            assert await chat(http, mesh.url("inference", "/v1/chat/completions"), "idler") == (200, SENTENCE)
        mesh.until_state(uuid, "SERVER_STATE_SLEEPING")
    finally:
        mesh.call("DELETE", f"/stop/{uuid}")


async def test_a_server_stopped_and_served_again_answers(mesh: RunningMesh) -> None:
    for _ in range(2):
        server = mesh.serve("sentence", model_name="twice")
        async with client(1) as http:
            assert await chat(http, mesh.url("inference", "/v1/chat/completions"), "twice") == (200, SENTENCE)
        assert mesh.call("DELETE", f"/stop/{server['server_uuid']}").status_code == 200
        async with client(1) as http:
            assert (await chat(http, mesh.url("inference", "/v1/chat/completions"), "twice"))[0] == 404


async def test_new_parameters_roll_out_without_a_failed_request(mesh: RunningMesh) -> None:
    server = mesh.serve("sentence", model_name="roller")
    uuid = server["server_uuid"]
    url = mesh.url("inference", "/v1/chat/completions")
    answers: list[tuple[int, str]] = []
    rolled = asyncio.Event()

    async def load() -> None:
        async with client(4) as http:
            while not rolled.is_set():
                answers.append(await chat(http, url, "roller"))

    async def roll() -> None:
        answer = mesh.call("PATCH", f"/servers/{uuid}", json={"runtime_params": "--ctx-size 1024"})
        assert answer.status_code == 200, answer.text
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            state = await asyncio.to_thread(mesh.server, uuid)
            if state["observed_generation"] == 2 and state["state"] == "SERVER_STATE_READY":
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(state)
        rolled.set()

    try:
        await asyncio.gather(load(), load(), roll())
        assert answers
        assert set(answers) == {(200, SENTENCE)}
    finally:
        rolled.set()
        mesh.call("DELETE", f"/stop/{uuid}")


async def test_a_client_that_leaves_frees_its_slot(mesh: RunningMesh) -> None:
    server = mesh.serve("sentence", model_name="narrow", runtime_params="--ctx-size 131072 --parallel 1")
    url = mesh.url("inference", "/v1/chat/completions")
    try:
        async with client(2) as http:
            body = {"model": "narrow", "messages": MESSAGES, "stream": True, "max_tokens": LONG, "ignore_eos": True}
            async with http.stream("POST", url, json=body) as answer:
                async for _ in answer.aiter_lines():
                    break
            assert await chat(http, url, "narrow") == (200, SENTENCE)
        (said,) = engine_counts(mesh, server["server_uuid"], "tokens_predicted_total")
        assert said < LONG, "the first request was cut off, not waited for"
    finally:
        mesh.call("DELETE", f"/stop/{server['server_uuid']}")


async def test_admission_refuses_more_than_the_contract_allows(mesh: RunningMesh) -> None:
    # One slot with a large context: the first request works until its client leaves.
    server = mesh.serve("sentence", model_name="metered", runtime_params="--ctx-size 131072 --parallel 1")
    contract = mesh.call(
        "POST", "/contracts", json={"display_name": "one at a time", "max_concurrent_requests": 1}
    ).json()
    key = mesh.call("POST", "/keys", json={"display_name": "k", "contract_id": contract["contract_id"]}).json()
    headers = {"authorization": f"Bearer {key['token']}"}
    url = mesh.url("inference", "/v1/chat/completions")
    body = {"model": "metered", "messages": MESSAGES, "stream": True, "max_tokens": LONG, "ignore_eos": True}
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        async with http.stream("POST", url, json=body) as first:
            assert first.status_code == 200
            lines = first.aiter_lines()
            await anext(lines)
            second = await http.post(url, json={"model": "metered", "messages": MESSAGES})
            assert second.status_code == 429, second.text
            assert second.json()["error"]["code"] == "concurrency_exceeded"
            assert int(second.headers["retry-after"]) >= 1
        deadline = time.monotonic() + PATIENCE
        while (third := await http.post(url, json={"model": "metered", "messages": MESSAGES})).status_code == 429:
            assert time.monotonic() < deadline, "the first request's place was never given back"
            await asyncio.sleep(0.1)
        assert third.status_code == 200
    deadline = time.monotonic() + PATIENCE
    while True:
        usage = mesh.call("GET", "/usage", "contract").json()["usage"]
        mine = [row for row in usage if row["contract_id"] == contract["contract_id"]]
        if mine and int(mine[0]["completion_tokens"]) > 0:
            break
        assert time.monotonic() < deadline, usage
        await asyncio.sleep(0.2)
    mesh.call("DELETE", f"/stop/{server['server_uuid']}")
