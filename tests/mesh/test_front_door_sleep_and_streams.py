"""The inference listener over time: servers without an engine, streams, restarts of the controller, many names."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.mesh.front_door import PATIENCE, FrontDoor, Received, token, wait_for
from tests.mesh.http_connection import Answer

U = "cccccccc-3333-4333-8333-333333333333"

V = "dddddddd-4444-4444-8444-444444444444"

CHAT = "/v1/chat/completions"

PATIENT = pytest.mark.parametrize("door", [{"restart_retries": 100}], indirect=True)
"""A door that tries for longer than a busy machine takes to start what was stopped."""

AWAKE = (503, {"x-llamesh-awake": "1"}, b"")


async def test_requests_to_a_sleeping_server_wait_and_are_answered_by_its_engine(door: FrontDoor) -> None:
    door.serve(U, names=("smol",), max_connections=4)
    assert await door.control.acknowledged(U, PATIENCE)
    woken = asyncio.Event()
    starts = 0

    async def wake() -> None:
        nonlocal starts
        starts += 1
        engine = await door.engine("late")
        door.serve(U, engine, names=("smol",), max_connections=4)
        assert await door.control.acknowledged(U, PATIENCE)
        woken.set()

    waking: asyncio.Task[None] | None = None

    async def hold(_: Received) -> tuple[int, dict[str, str], bytes]:
        nonlocal waking
        waking = waking or asyncio.create_task(wake())
        await woken.wait()
        return AWAKE

    door.waker.handler = hold
    long = "word " * 20_000
    paths = [CHAT, f"/{U}{CHAT}"] * 10
    answers = await asyncio.gather(*(door.chat(path=path, prompt=long) for path in paths))
    assert [answer.status for answer in answers] == [200] * 20
    assert {answer.json()["from"] for answer in answers} == {"late"}
    assert starts == 1
    assert not [name for answer in answers for name in answer.headers if name.startswith("x-llamesh")]
    (late,) = door.engines
    assert len(late.received) == 20
    assert all(len(json.loads(each.body)["prompt"]) == 100_000 for each in late.received)


async def test_the_wakers_refusal_goes_to_the_client_as_it_is(door: FrontDoor) -> None:
    refusal = {"error": {"message": "later", "type": "server_error", "param": None, "code": "server_starting"}}

    async def refuse(_: Received) -> tuple[int, dict[str, str], bytes]:
        return 503, {"retry-after": "7"}, json.dumps(refusal).encode()

    door.waker.handler = refuse
    door.serve(U, names=("smol",))
    assert await door.control.acknowledged(U, PATIENCE)
    answer = await door.chat()
    assert (answer.status, answer.headers["retry-after"], answer.json()) == (503, "7", refusal)


@PATIENT
async def test_requests_lost_with_their_waker_are_held_by_the_next(door: FrontDoor) -> None:
    arrived: list[Received] = []
    here, let_go = asyncio.Event(), asyncio.Event()

    async def hold(request: Received) -> tuple[int, dict[str, str], bytes]:
        arrived.append(request)
        here.set()
        await let_go.wait()
        return AWAKE

    door.waker.handler = hold
    door.serve(U, names=("smol",), max_connections=16)
    assert await door.control.acknowledged(U, PATIENCE)
    long = "word " * 60_000
    before = time.time()
    asked = [asyncio.create_task(door.chat(prompt=long)) for _ in range(10)]
    for lives in (1, 2):
        await wait_for(lambda: len(arrived) == 10 * lives)  # noqa: B023
        await door.waker.stop()
        await asyncio.sleep(0.2)
        await door.waker.start()
    await wait_for(lambda: len(arrived) == 30)
    door.serve(U, await door.engine(), names=("smol",), max_connections=16)
    assert await door.control.acknowledged(U, PATIENCE)
    let_go.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 10
    assert all(len(json.loads(request.body)["prompt"]) == 300_000 for request in door.engines[0].received)
    # The waker is told since when, always the same, and not given what it would only drop.
    since = [float(request.headers["x-llamesh-held-since"]) for request in arrived]
    assert len(set(since)) <= 10
    assert before - 1 <= since[0] <= time.time() + 1
    assert {request.body for request in arrived} == {b""}
    assert {request.headers["x-llamesh-cluster"] for request in arrived} == {"m:smol"}


async def test_a_client_that_leaves_leaves_the_waker_too(door: FrontDoor) -> None:
    door.waker.handler = _never
    door.serve(U, names=("smol",))
    assert await door.control.acknowledged(U, PATIENCE)
    connection = await door.connect()
    asking = asyncio.create_task(connection.send("POST", CHAT, {"model": "smol", "messages": []}))
    await wait_for(lambda: len(door.waker.received) == 1)
    assert await door.stat("cluster.waker.upstream_rq_active") == 1
    connection.close()

    async def left() -> bool:
        return await door.stat("cluster.waker.upstream_rq_active") == 0

    await door.until(left, PATIENCE)
    await asyncio.gather(asking, return_exceptions=True)


async def _never(_: Received) -> tuple[int, dict[str, str], bytes]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_without_a_controller_a_held_request_is_refused_in_words_and_in_time(door: FrontDoor) -> None:
    door.serve(U, names=("smol",))
    assert await door.control.acknowledged(U, PATIENCE)
    await door.waker.stop()
    answer = await door.chat()
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "controller_unavailable", "5")
    await door.waker.start()


@PATIENT
async def test_the_list_of_models_is_asked_again_if_it_was_lost(door: FrontDoor) -> None:
    async def die(_: Received) -> tuple[int, dict[str, str], bytes]:
        door.waker.handler = None
        raise ConnectionResetError

    door.waker.handler = die
    assert (await door.send("GET", "/v1/models")).status == 200
    await door.waker.stop()
    asked = asyncio.create_task(door.send("GET", "/v1/models"))
    await asyncio.sleep(0.3)
    await door.waker.start()
    assert (await asked).status == 200


async def test_a_silent_request_is_ended_by_its_servers_own_limit_and_told_so(door: FrontDoor) -> None:
    silent = await door.engine("silent", _never)
    slow = await door.engine("slow", _slow)
    door.serve(U, silent, names=("silent",), silence_seconds=1)
    door.serve(V, slow, names=("slow",), silence_seconds=30)
    assert await door.control.settled(PATIENCE)
    patient = asyncio.create_task(door.chat("slow"))
    for path in (CHAT, f"/{U}{CHAT}"):
        answer = await door.chat("silent", path=path)
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
        assert "within 1 s" in answer.error["message"]
        assert "the server's --timeout, but at least its wake budget and 5 s" in answer.error["message"]
        assert "PATCH /servers/{server_uuid}, or ask for a stream" in answer.error["message"]
    # What it was given once is not sent again, and the limit of one server is not that of another.
    assert len(silent.received) == 2
    assert (await patient).status == 200


async def test_a_stream_may_take_longer_than_its_server_may_be_silent(door: FrontDoor) -> None:
    door.serve(U, await door.engine("slow", _slow), names=("smol",), silence_seconds=30, budget_seconds=0)
    door.serve(V, await door.engine("other", _never), names=("other",), silence_seconds=1)
    assert await door.control.settled(PATIENCE)
    assert (await door.chat()).status == 200
    routes = json.loads(await door.admin("/config_dump?resource=dynamic_route_configs"))
    (table,) = [each["route_config"] for each in routes["configs"] if each["route_config"]["name"] == "inference"]
    assert table["virtual_hosts"][0]["routes"][0]["route"]["idle_timeout"] == "30s"


async def _slow(_: Received) -> tuple[int, dict[str, str], bytes]:
    await asyncio.sleep(2.5)
    return 200, {}, b"{}"


async def test_one_ready_replica_keeps_everything_off_the_waker(door: FrontDoor) -> None:
    engine = await door.engine()
    door.serve(U, engine, names=("smol",))
    assert await door.control.acknowledged(U, PATIENCE)
    for _ in range(50):
        assert (await door.chat()).json()["from"] == "engine"
    assert door.waker.received == []


async def test_an_engine_that_dies_with_a_request_is_not_given_it_again(door: FrontDoor) -> None:
    async def die(_: Received) -> tuple[int, dict[str, str], bytes]:
        raise ConnectionResetError

    engine = await door.engine(handler=die)
    door.serve(U, engine, names=("smol",))
    assert await door.control.acknowledged(U, PATIENCE)
    answer = await door.chat()
    assert (answer.status, answer.error["type"], answer.headers["retry-after"]) == (503, "server_error", "1")
    assert len(engine.received) == 1


@PATIENT
async def test_an_engine_that_is_being_replaced_is_waited_for(door: FrontDoor) -> None:
    engine = await door.engine()
    door.serve(U, engine, names=("smol",))
    assert await door.control.acknowledged(U, PATIENCE)
    await engine.stop()
    asking = asyncio.create_task(door.chat())
    await asyncio.sleep(0.3)
    assert not asking.done()
    await engine.start()
    assert (await asking).status == 200


async def test_streams_and_plain_answers_mixed_without_one_503(door: FrontDoor) -> None:
    engine = await door.engine()
    door.serve(U, engine, names=("smol",), max_connections=4)
    assert await door.control.acknowledged(U, PATIENCE)

    async def client(number: int) -> list[Answer]:
        connection = await door.connect()
        return [
            await connection.send("POST", CHAT, {"model": "smol", "stream": (number + turn) % 2 == 0})
            for turn in range(120)
        ]

    answers = [answer for some in await asyncio.gather(*(client(number) for number in range(4))) for answer in some]
    assert [answer.status for answer in answers] == [200] * 480
    assert sum(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers) == 240


async def test_never_more_connections_than_the_engine_has_threads(door: FrontDoor) -> None:
    running = most = 0
    all_used = asyncio.Event()

    async def slow(_: Received) -> tuple[int, dict[str, str], bytes]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running >= 3:
            all_used.set()
        # The first requests last until each connection has one; more than that would come within the pause.
        await all_used.wait()
        await asyncio.sleep(0.02)
        running -= 1
        return 200, {}, b"{}"

    engine = await door.engine(handler=slow)
    door.serve(U, engine, names=("smol",), max_connections=3)
    assert await door.control.acknowledged(U, PATIENCE)
    answers = await asyncio.gather(*(door.chat() for _ in range(30)))
    assert [answer.status for answer in answers] == [200] * 30
    # Each of Envoy's two workers may open its first connection whatever the limit, so that none waits for ever.
    assert 3 <= most <= 3 + 1


async def test_a_removed_server_is_unknown_and_another_is_untouched(door: FrontDoor) -> None:
    engine = await door.engine()
    other = "dddddddd-4444-4444-8444-444444444444"
    door.serve(U, engine, names=("smol",))
    door.serve(other, engine, names=("other",))
    assert await door.control.acknowledged(other, PATIENCE)
    assert (await door.chat()).status == 200
    door.control.remove_server(U)

    async def gone() -> bool:
        return (await door.chat()).status == 404 and (await door.chat(path=f"/{U}{CHAT}")).status == 404

    await door.until(gone, PATIENCE)
    assert (await door.chat("other")).status == 200


async def test_a_restarted_controller_changes_nothing_and_is_found_again(door: FrontDoor) -> None:
    engine = await door.engine()
    door.serve(U, engine, names=("smol",))
    assert await door.control.acknowledged(U, PATIENCE)
    await door.stop_control()
    assert (await door.chat()).status == 200, "Envoy goes on with what it has"
    from controller.xds.serving import ControlPlane

    door.control = ControlPlane()
    await door.start_control()
    await asyncio.sleep(0.3)
    assert (await door.chat()).status == 200, "a controller that knows nothing yet takes nothing away"
    door.control.set_static(door.services(), door.inference(), [])
    door.serve(U, engine, names=("smol", "new"))
    door.control.publish()
    assert await door.control.acknowledged(U, PATIENCE)
    assert (await door.chat("new")).status == 200


async def test_a_change_of_settings_reaches_a_running_envoy(door: FrontDoor) -> None:
    engine = await door.engine()
    door.serve(U, engine, names=("smol",))
    assert await door.control.acknowledged(U, PATIENCE)
    assert (await door.chat()).status == 200
    door.control.set_static(door.services(), door.inference(allow_anonymous=False), [])
    assert await door.control.settled(PATIENCE)
    answer = await door.chat()
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert (await door.chat(headers={"authorization": "Bearer sk-dummy"})).status == 401
    assert (await door.chat(headers={"authorization": f"Bearer {token()}"})).status == 200


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


class Asker(asyncio.Protocol):
    """Asks for one unknown model after another on one kept-alive connection; written for speed."""

    def __init__(self, numbers: range) -> None:
        self._numbers = iter(numbers)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        # The answer is far smaller than a segment and comes as one.
        if not data.startswith(b"HTTP/1.1 404") or not data.endswith(b"}\n"):
            self.done.set_exception(AssertionError(data))
            self._transport.close()
            return
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("closed by Envoy"))

    def _ask(self) -> None:
        number = next(self._numbers, None)
        if number is None:
            self.done.set_result(None)
            self._transport.close()
            return
        body = b'{"model":"unknown-%d"}' % number
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


async def test_100_000_unknown_names_leave_envoys_memory_flat(door: FrontDoor) -> None:
    loop, connections = asyncio.get_running_loop(), 32

    async def ask(numbers: range) -> None:
        share = len(numbers) // connections
        askers = [Asker(numbers[share * each : share * (each + 1)]) for each in range(connections)]
        for asker in askers:
            await loop.create_connection(lambda asker=asker: asker, "127.0.0.1", door.port)
        await asyncio.gather(*(asker.done for asker in askers))

    await ask(range(32_000))
    before = resident_kib(door.pid)
    await ask(range(32_000, 112_000))
    assert await door.stat("http.inference.downstream_rq_4xx") == 112_000
    grown = resident_kib(door.pid) - before
    assert grown < 4 * 1024, f"{grown} KiB"
