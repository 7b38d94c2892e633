"""The official OpenAI client works unchanged at both addresses, sees usage, and gets its typed exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine import sentence
from engine.sentence import COMPLETION_TOKENS, SENTENCE
from tests.mesh.conftest import Served

MESSAGES = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(params=["by name", "by server"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[openai.OpenAI]:
    """A client with the dummy key that tutorials use, at one of the two addresses."""
    base = served.path("/v1") if request.param == "by server" else served.mesh.url("inference", "/v1")
    with openai.OpenAI(base_url=base, api_key="not-needed", max_retries=0) as found:
        yield found


def test_it_chats_and_sees_usage(client: openai.OpenAI, served: Served) -> None:
    answer = client.chat.completions.create(model=served.model, messages=MESSAGES)
    assert (answer.choices[0].message.content or "").strip() == SENTENCE
    assert answer.usage is not None
    assert answer.usage.completion_tokens == COMPLETION_TOKENS


def test_it_completes(client: openai.OpenAI, served: Served) -> None:
    assert client.completions.create(model=served.model, prompt="Hi").choices[0].text.strip() == SENTENCE


def test_it_streams_word_by_word_with_usage(client: openai.OpenAI, served: Served) -> None:
    chunks = list(
        client.chat.completions.create(
            model=served.model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(words).strip() == SENTENCE
    assert len([word for word in words if word]) > 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == COMPLETION_TOKENS


def test_the_raw_stream_ends_with_done(served: Served) -> None:
    body = {"model": served.model, "messages": MESSAGES, "stream": True}
    with served.mesh.http.stream("POST", served.mesh.url("inference", "/v1/chat/completions"), json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_an_unknown_model_is_not_found(served: Served) -> None:
    with (
        openai.OpenAI(base_url=served.mesh.url("inference", "/v1"), api_key="sk-x", max_retries=0) as client,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        client.chat.completions.create(model="nobody-serves-this", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


def test_a_bad_token_is_an_authentication_error(served: Served) -> None:
    with (
        openai.OpenAI(base_url=served.path("/v1"), api_key="a.b.c", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model=served.model, messages=MESSAGES)


@pytest.mark.parametrize("field", ["n_discard", "chat_parser", "id_slot"])
def test_a_field_no_client_may_send_is_named(served: Served, field: str) -> None:
    with (
        openai.OpenAI(base_url=served.path("/v1"), api_key="sk-x", max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.chat.completions.create(model=served.model, messages=MESSAGES, extra_body={field: 1})
    assert caught.value.param == field


def test_a_server_that_cannot_start_is_unavailable_and_says_when_to_come_back(served: Served, tmp_path: Path) -> None:
    mesh = served.mesh
    # A sound file of an architecture that llama.cpp does not know: only the engine can find out.
    whole = sentence.write(tmp_path / "whole.gguf").read_bytes()
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(
        whole.replace(
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0xlama",
        )
    )
    mesh.add_model("strange", "strange.gguf", strange)
    answer = mesh.call("POST", "/serve", json={"model_uuid": "strange", "wake_budget": "2s"})
    assert answer.status_code == 200, answer.text
    uuid = answer.json()["server_uuid"]
    try:
        with (
            openai.OpenAI(base_url=mesh.url("inference", f"/{uuid}/v1"), api_key="sk-x", max_retries=0) as client,
            pytest.raises(openai.InternalServerError) as caught,
        ):
            client.chat.completions.create(model="strange.gguf", messages=MESSAGES)
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) >= 1
        state = mesh.until_state(uuid, "SERVER_STATE_FAILING")
        ready = next(item for item in state["conditions"] if item["type"] == "Ready")
        assert ready["status"] == "CONDITION_STATUS_FALSE"
        assert "xlama" in ready["message"]
    finally:
        mesh.call("DELETE", f"/stop/{uuid}")


def test_it_retrieves_a_model_whose_name_has_a_slash(served: Served) -> None:
    spec = {"model_uuid": "sentence", "model_name": "org/name:tag", "replicas": 0}
    server = served.mesh.call("POST", "/serve", json=spec).json()
    try:
        with openai.OpenAI(base_url=served.mesh.url("inference", "/v1"), api_key="sk-x", max_retries=0) as client:
            assert client.models.retrieve("org/name:tag").id == "org/name:tag"
    finally:
        served.mesh.call("DELETE", f"/servers/{server['server_uuid']}")


@pytest.mark.parametrize("path", ["/v1/chat/completions/input_tokens", "/v1/responses/input_tokens"])
def test_tokens_of_a_request_are_counted(served: Served, path: str) -> None:
    body = {"model": served.model, "messages": MESSAGES, "input": "Hello!"}
    answer = served.mesh.http.post(served.mesh.url("inference", path), json=body)
    assert answer.status_code == 200
    assert answer.json()["input_tokens"] > 0


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_load_balancers_ask_for_health(served: Served, path: str) -> None:
    answer = served.mesh.http.get(served.mesh.url("inference", path))
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert served.mesh.http.head(served.mesh.url("inference", path)).status_code == 200
    assert served.mesh.http.head(served.mesh.url("gateway", "/health")).status_code == 200


def test_a_client_of_the_standard_health_protocol_is_answered_on_every_port(served: Served) -> None:
    for port in ("gateway", "contract", "download"):
        with grpc.insecure_channel(served.mesh.url(port, "").removeprefix("http://")) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert (
                stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == health_pb2.HealthCheckResponse.SERVING
            )
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="envoy"), timeout=60)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()


def test_headers_that_the_engine_would_refuse_do_not_reach_it(served: Served) -> None:
    headers = {"cookie": "c" * 20_000, "session_id": "s", "user-agent": "u" * 9000}
    body = {"model": served.model, "messages": MESSAGES, "max_tokens": 1}
    url = served.mesh.url("inference", "/v1/chat/completions")
    assert served.mesh.http.post(url, json=body, headers=headers).status_code == 200
