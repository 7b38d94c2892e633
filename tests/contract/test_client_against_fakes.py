"""Both clients over a real channel against in-process servicers (labelled fakes: they answer from memory)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from llamesh.client import errors
from llamesh.client.aio import AsyncClient
from llamesh.client.parameters import typed
from llamesh.client.sync import Client
from llamesh.runtime_parameters import all_parameters
from llamesh.v1 import download_pb2, gateway_pb2, server_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, a_value
from tests.contract.patience import PATIENCE


@pytest.fixture
def mesh(url: str) -> Iterator[Client]:
    with Client(url, "token") as client:
        yield client


@pytest.fixture
async def async_mesh(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url, "token") as client:
        yield client


def changed(token: str, state: server_pb2.ServerState.ValueType) -> gateway_pb2.WatchResponse:
    return gateway_pb2.WatchResponse(server=server_pb2.Server(server_uuid="s1", state=state), resume_token=token)


def test_lists_fetch_their_pages_themselves(mesh: Client, gateway: FakeGateway) -> None:
    assert [model.model_uuid for model in mesh.models.list()] == ["m0", "m1", "m2", "m3", "m4", "m5"]
    assert gateway.tokens == ["Bearer token"] * 3


async def test_lists_fetch_their_pages_themselves_with_await(async_mesh: AsyncClient) -> None:
    assert [model.name async for model in async_mesh.models.list()][-1] == "name5"
    assert await async_mesh.models.find("name3") == "m3"


def test_an_answer_becomes_the_reasons_class(mesh: Client) -> None:
    with pytest.raises(errors.ModelNotFound) as caught:
        mesh.models.get("none")
    assert isinstance(caught.value, LookupError)
    assert caught.value.remedy.startswith("List the models")


def test_reads_are_repeated_while_the_mesh_restarts(mesh: Client, gateway: FakeGateway) -> None:
    gateway.unavailable = 2
    assert mesh.models.get("m1").name == "Found"
    gateway.unavailable = 3
    with pytest.raises(errors.ComponentUnavailable):
        mesh.models.get("m1")


async def test_reads_are_repeated_with_await(async_mesh: AsyncClient, gateway: FakeGateway) -> None:
    gateway.unavailable = 2
    assert (await async_mesh.models.get("m1")).name == "Found"


def test_writes_are_not_repeated(mesh: Client, gateway: FakeGateway) -> None:
    with pytest.raises(errors.Unavailable):
        mesh.models.delete("m1")
    assert gateway.unavailable == 1


def test_serve_may_be_repeated_and_serves_once(mesh: Client, gateway: FakeGateway) -> None:
    server = mesh.servers.serve("m1", ctx_size=2048, cache_type_k="q8_0")
    assert len(gateway.serve_requests) == 2
    assert len(set(gateway.serve_requests)) == 1
    assert len(gateway.served) == 1
    assert server.spec.parameters.ctx_size == 2048
    assert server.spec.parameters.cache_type_k == server_pb2.CACHE_TYPE_Q8_0


def test_a_parameter_that_there_is_not_is_named_before_anything_is_sent(mesh: Client, gateway: FakeGateway) -> None:
    with pytest.raises(ValueError, match="api_key is not a runtime parameter"):
        mesh.servers.serve("m1", api_key="x")
    with pytest.raises(ValueError, match="cache_type_k is one of"):
        mesh.servers.serve("m1", cache_type_k="q9")
    assert gateway.serve_requests == []


EVERY_PARAMETER = {name: a_value(parameter) for name, parameter in all_parameters().items()}


def test_every_runtime_parameter_arrives(mesh: Client, gateway: FakeGateway) -> None:
    lost = []
    for name, value in EVERY_PARAMETER.items():
        wanted = typed({name: value})
        mesh.servers.serve("m1", parameters={name: value})
        if gateway.declared[-1].parameters != wanted or mesh.check("m1", parameters={name: value}).parameters != wanted:
            lost.append(name)
    assert lost == []


async def test_every_runtime_parameter_arrives_with_await(async_mesh: AsyncClient, gateway: FakeGateway) -> None:
    wanted = typed(EVERY_PARAMETER)
    await async_mesh.servers.serve("m1", parameters=EVERY_PARAMETER)
    assert gateway.declared[-1].parameters == wanted
    assert (await async_mesh.check("m1", parameters=EVERY_PARAMETER)).parameters == wanted


def test_a_runtime_parameter_arrives_by_its_name_unless_the_call_has_an_argument_of_that_name(
    mesh: Client, gateway: FakeGateway
) -> None:
    for call in (mesh.servers.serve, mesh.check):
        own = inspect.signature(call).parameters
        named = {name: value for name, value in EVERY_PARAMETER.items() if name not in own}
        assert EVERY_PARAMETER.keys() - named.keys() == {"timeout"}, "say so in the documentation of the call"
        call("m1", **named)
    server, check = gateway.declared[-1].parameters, mesh.check("m1", **named).parameters
    assert server == check == typed(named)


def test_runtime_parameters_come_as_a_mapping_or_a_message_together_with_those_by_name(
    mesh: Client, gateway: FakeGateway
) -> None:
    wanted = server_pb2.RuntimeParameters(timeout=3, ctx_size=2048)
    for given in ({"timeout": 3}, server_pb2.RuntimeParameters(timeout=3)):
        mesh.servers.serve("m1", ctx_size=2048, parameters=given, timeout=30.0)
        assert gateway.declared[-1].parameters == wanted
    given = server_pb2.RuntimeParameters(timeout=3)
    assert mesh.check("m1", parameters=given, ctx_size=2048).parameters == wanted
    assert given == server_pb2.RuntimeParameters(timeout=3)


def test_a_runtime_parameter_that_is_given_twice_is_named_before_anything_is_sent(
    mesh: Client, gateway: FakeGateway
) -> None:
    with pytest.raises(ValueError, match="ctx_size is given twice"):
        mesh.servers.serve("m1", ctx_size=2048, parameters={"ctx_size": 4096})
    with pytest.raises(ValueError, match="api_key is not a runtime parameter"):
        mesh.servers.serve("m1", parameters={"api_key": "x"})
    assert gateway.serve_requests == []


def test_login_changes_the_token(mesh: Client, gateway: FakeGateway) -> None:
    with pytest.raises(errors.WrongCredentials):
        mesh.login("ada", "wrong")
    mesh.login("ada", "right")
    next(mesh.models.list())
    assert gateway.tokens == ["", "", "Bearer fresh"]


def test_a_refused_check_is_an_answer(mesh: Client) -> None:
    answer = mesh.check("m1", ctx_size=4096)
    assert not answer.allowed
    assert answer.parameters.ctx_size == 4096


def test_a_watch_resumes_after_a_lost_connection(mesh: Client, gateway: FakeGateway) -> None:
    gateway.watch_scripts = [
        [
            changed("1", server_pb2.SERVER_STATE_STARTING),
            gateway_pb2.WatchResponse(heartbeat=True, resume_token="2"),
            grpc.StatusCode.UNAVAILABLE,
        ],
        [changed("3", server_pb2.SERVER_STATE_READY)],
    ]
    events = mesh.watch(kinds=["SERVERS"], servers=["s1"])
    states = [next(events).server.state for _ in range(2)]
    events.close()  # type: ignore[attr-defined]
    assert states == [server_pb2.SERVER_STATE_STARTING, server_pb2.SERVER_STATE_READY]
    assert [request.resume_token for request in gateway.watches] == ["", "2"]
    assert gateway.watches[0].kinds == [gateway_pb2.WATCH_KIND_SERVERS]


async def test_a_watch_begins_again_if_its_resume_token_has_expired(
    async_mesh: AsyncClient, gateway: FakeGateway
) -> None:
    gateway.watch_scripts = [
        [changed("1", server_pb2.SERVER_STATE_STARTING), grpc.StatusCode.UNAVAILABLE],
        ["RESUME_TOKEN_EXPIRED"],
        [changed("9", server_pb2.SERVER_STATE_READY)],
    ]
    seen = []
    async for event in async_mesh.watch():
        seen.append(event.server.state)
        if len(seen) == 2:
            break
    assert [request.resume_token for request in gateway.watches] == ["", "1", ""]


def test_a_wait_outlasts_the_limit_of_watches_and_a_watch_does_not(mesh: Client, gateway: FakeGateway) -> None:
    ready = changed("1", server_pb2.SERVER_STATE_READY)
    done = download_pb2.Download(model_uuid="m1.gguf", state=download_pb2.DOWNLOAD_STATE_SUCCEEDED)
    done.create_time.seconds = 1
    gateway.watch_scripts = [["TOO_MANY_WATCHES"], ["TOO_MANY_WATCHES"], [ready]]
    assert mesh.servers.wait_ready("s1", timeout=PATIENCE).state == server_pb2.SERVER_STATE_READY
    pull = mesh.models.pull("/models/m1.gguf")
    gateway.watch_scripts = [["TOO_MANY_WATCHES"], [gateway_pb2.WatchResponse(download=done)]]
    pull.wait(timeout=PATIENCE)
    gateway.watch_scripts = [["TOO_MANY_WATCHES"], [ready]]
    with pytest.raises(errors.TooManyWatches):
        next(mesh.watch())


def test_waiting_ends_when_the_server_is_ready(mesh: Client, gateway: FakeGateway) -> None:
    gateway.watch_scripts = [
        [changed("1", server_pb2.SERVER_STATE_STARTING), changed("2", server_pb2.SERVER_STATE_READY)]
    ]
    assert mesh.servers.wait_ready("s1", timeout=PATIENCE).state == server_pb2.SERVER_STATE_READY


def test_waiting_ends_when_engines_fail(mesh: Client, gateway: FakeGateway) -> None:
    failing = changed("1", server_pb2.SERVER_STATE_FAILING)
    failing.server.conditions.add(type="Ready", message="out of memory")
    gateway.watch_scripts = [[failing]]
    with pytest.raises(errors.EngineFailed, match="out of memory"):
        mesh.servers.wait_ready("s1", timeout=PATIENCE)


def test_waiting_for_a_server_that_is_asleep_says_what_wakes_it(mesh: Client, gateway: FakeGateway) -> None:
    asleep = changed("1", server_pb2.SERVER_STATE_SLEEPING)
    asleep.server.conditions.add(type="Ready", message="asleep; the next request wakes it")
    gateway.watch_scripts, gateway.servers = [[asleep]], [asleep.server]
    with pytest.raises(errors.FailedPrecondition, match="the next request wakes it") as caught:
        mesh.servers.wait_ready("s1", timeout=PATIENCE)
    assert "llamesh wake s1" in caught.value.remedy


def test_waiting_for_a_server_that_was_just_woken_goes_on(mesh: Client, gateway: FakeGateway) -> None:
    gateway.servers = [server_pb2.Server(server_uuid="s1", state=server_pb2.SERVER_STATE_STARTING)]
    gateway.watch_scripts = [
        [changed("1", server_pb2.SERVER_STATE_SLEEPING), changed("2", server_pb2.SERVER_STATE_READY)]
    ]
    assert mesh.servers.wait_ready("s1", timeout=PATIENCE).state == server_pb2.SERVER_STATE_READY


def test_waiting_for_a_server_that_there_is_not_does_not_wait(mesh: Client, gateway: FakeGateway) -> None:
    gateway.watch_scripts = [[gateway_pb2.WatchResponse(synced=True)]]
    with pytest.raises(errors.ServerNotFound):
        mesh.servers.wait_ready("none", timeout=PATIENCE)


def test_waiting_times_out_with_the_reason(mesh: Client, gateway: FakeGateway) -> None:
    starting = changed("1", server_pb2.SERVER_STATE_STARTING)
    starting.server.conditions.add(type="Ready", message="the model is being located")
    gateway.watch_scripts = [[starting]]
    with pytest.raises(TimeoutError, match="the model is being located"):
        mesh.servers.wait_ready("s1", timeout=0.3)


def test_a_pull_takes_files_and_waits_for_the_model(
    mesh: Client, gateway: FakeGateway, downloads: FakeDownloads
) -> None:
    done = download_pb2.Download(model_uuid="My-Model.gguf", state=download_pb2.DOWNLOAD_STATE_SUCCEEDED)
    done.create_time.seconds = 1
    gateway.watch_scripts = [[gateway_pb2.WatchResponse(download=done)]]
    seen: list[int] = []
    pull = mesh.models.pull("/models/My Model.gguf")
    model = pull.wait(timeout=PATIENCE, on_progress=lambda now: seen.append(now.state))
    assert model.model_uuid == "My-Model.gguf"
    assert downloads.requests[0].source == "file:///models/My%20Model.gguf"
    assert seen == [download_pb2.DOWNLOAD_STATE_QUEUED, download_pb2.DOWNLOAD_STATE_SUCCEEDED]


def test_a_pull_that_fails_raises_its_reason(mesh: Client, gateway: FakeGateway) -> None:
    failed = download_pb2.Download(model_uuid="m", state=download_pb2.DOWNLOAD_STATE_FAILED)
    failed.create_time.seconds = 1
    failed.error.reason, failed.error.message = "CONTENT_MISMATCH", "other bytes"
    gateway.watch_scripts = [[gateway_pb2.WatchResponse(download=failed)]]
    with pytest.raises(errors.ContentMismatch, match="other bytes"):
        mesh.models.pull("https://models.example/m.gguf").wait(timeout=PATIENCE)


@pytest.mark.parametrize("before", [download_pb2.DOWNLOAD_STATE_FAILED, download_pb2.DOWNLOAD_STATE_CANCELLED])
def test_how_an_earlier_attempt_ended_does_not_end_a_pull(
    mesh: Client, gateway: FakeGateway, before: download_pb2.DownloadState.ValueType
) -> None:
    earlier = download_pb2.Download(model_uuid="m.gguf", state=before)
    earlier.error.reason = "MODEL_CORRUPT"
    repaired = download_pb2.Download(model_uuid="m.gguf", state=download_pb2.DOWNLOAD_STATE_SUCCEEDED)
    repaired.create_time.seconds = 1
    gateway.watch_scripts = [[gateway_pb2.WatchResponse(download=item) for item in (earlier, repaired)]]
    seen: list[int] = []
    pull = mesh.models.pull("https://models.example/m.gguf")
    assert pull.wait(timeout=PATIENCE, on_progress=lambda now: seen.append(now.state)).model_uuid == "m.gguf"
    assert before not in seen


@pytest.mark.parametrize("told", ["removed_download_uuid", "synced"])
def test_a_pull_whose_record_is_removed_meanwhile_ends(mesh: Client, gateway: FakeGateway, told: str) -> None:
    """A watch that began after the removal shows only a list without the download."""
    gateway.watch_scripts = [[gateway_pb2.WatchResponse(**{told: "m.gguf" if told != "synced" else True})]]
    pull = mesh.models.pull("https://models.example/m.gguf")
    assert mesh.models.delete_download("m.gguf").model_uuid == "m.gguf"
    with pytest.raises(errors.DownloadNotFound):
        pull.wait(timeout=PATIENCE)


async def test_many_calls_at_once(async_mesh: AsyncClient) -> None:
    found = await asyncio.gather(*(async_mesh.models.get(f"m{number}") for number in range(20)))
    assert {model.name for model in found} == {"Found"}


def test_the_openai_client_is_set_up_for_a_server(mesh: Client) -> None:
    client = mesh.openai(server_pb2.Server(endpoint="http://localhost:8080/s1/v1"), max_retries=0)
    assert str(client.base_url) == "http://localhost:8080/s1/v1/"
    assert client.api_key == "token"


def test_the_openai_client_of_a_mesh_at_a_moved_port_guesses_nothing(mesh: Client) -> None:
    pytest.importorskip("openai")
    with pytest.raises(ValueError, match="is not known: set LLAMESH_INFERENCE_URL"):
        mesh.openai()


def test_the_openai_client_goes_the_way_that_this_client_was_told() -> None:
    pytest.importorskip("openai")
    server = server_pb2.Server(server_uuid="s1", endpoint="http://inside:8080/s1/v1")
    with Client("https://mesh.example", "token", inference_url="https://models.example") as mesh:
        assert str(mesh.openai(server).base_url) == "https://models.example/s1/v1/"
        assert str(mesh.openai().base_url) == "https://models.example/v1/"
