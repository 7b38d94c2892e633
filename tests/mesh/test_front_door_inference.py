"""The inference listener with a real Envoy: who, where to, and what is refused."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.mesh.front_door import FrontDoor, token
from tests.mesh.inference_door import CHAT, SMALL_LIMIT, A, B, engine

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "path",
    [
        *("chat/completions", "completions", "embeddings", "responses", "messages", "rerank", "reranking"),
        *("chat/completions/input_tokens", "responses/input_tokens", "messages/count_tokens"),
    ],
)
async def test_every_allowed_path_reaches_its_server(inference: FrontDoor, path: str) -> None:
    for prefix, model, name in (
        ("", "big", "b"),
        ("", "org/big:Q4", "a"),
        (f"/{A}", "big", "a"),
        (f"/{B}", "smol", "b"),
    ):
        answer = await inference.chat(model, path=f"{prefix}/v1/{path}")
        assert (answer.status, answer.json()["from"]) == (200, name)
        assert engine(inference, name).received[-1].path == f"/v1/{path}"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/api/{name}") for name in ("chat", "generate", "embed", "show")),
        *(("GET", f"/api/{name}") for name in ("tags", "version", "tags?now=1")),
    ],
)
async def test_a_client_of_ollama_is_pointed_to_v1(inference: FrontDoor, method: str, path: str) -> None:
    answer = await inference.send(method, path, b"{}")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json().keys() == {"error"}
    assert "/v1" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/apis/chat", f"/{A}/api/chat", "/v1/api/chat"])
async def test_other_paths_that_are_not_served_keep_the_shape_of_openai(inference: FrontDoor, path: str) -> None:
    answer = await inference.send("POST", path, b"{}")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")


async def test_a_model_name_uses_all_its_servers(inference: FrontDoor) -> None:
    names = {(await inference.chat("smol")).json()["from"] for _ in range(40)}
    assert names == {"a", "b"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        *(
            ("POST", path, 404, "not_found")
            for path in ("/slots/0", "/props", "/completion", "/lora-adapters", "/v1/stream", "/messages", "/")
        ),
        *(
            ("POST", path, 404, "not_found")
            for path in (f"/{A}/slots/0", f"/{A}/x/v1/completions", "/v1/chat/completions/control", f"/{A}/v1/../slots")
        ),
        ("POST", "/v1/chat/../../slots/0", 404, "not_found"),
        ("GET", "/v1/slots", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", f"/{A}{CHAT}", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/models/load", 405, "method_not_allowed"),
        ("GET", "/chat/completions", 405, "method_not_allowed"),
        ("POST", "/x/chat/completions", 404, "not_found"),
        *(
            ("POST", path, 404, "not_found")
            for path in ("/v1%2Fchat/completions", f"/{A}%2fv1/chat/completions", "/v1%5Cchat/completions")
        ),
        ("POST", "/v1/chat/%2e%2e/%2e%2e/slots/0", 404, "not_found"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", f"/{A}/health", 404, "not_found"),
    ],
)
async def test_every_other_path_is_refused_in_openais_shape(
    inference: FrontDoor, method: str, path: str, status: int, code: str
) -> None:
    before = [len(each.received) for each in inference.engines]
    answer = await inference.send(method, path, {"model": "big"})
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert answer.error["message"]
    assert [len(each.received) for each in inference.engines] == before


@pytest.mark.parametrize(
    "path",
    ["//v1//chat/completions", "/v1/./chat/completions", "/x/../v1/chat/completions", f"//{B}//v1/chat/completions"],
)
async def test_doubled_slashes_and_dots_mean_the_plain_path(inference: FrontDoor, path: str) -> None:
    answer = await inference.chat("big", path=path)
    assert (answer.status, answer.json()["from"]) == (200, "b")
    assert engine(inference, "b").received[-1].path == CHAT


@pytest.mark.parametrize("server", ["", f"/{B}"])
async def test_openais_paths_work_without_the_prefix(inference: FrontDoor, server: str) -> None:
    for path in (
        "chat/completions",
        "completions",
        "embeddings",
        "responses",
        "rerank",
        "chat/completions/input_tokens",
    ):
        headers = []
        for prefix in ("/v1", ""):
            answer = await inference.chat("big", path=f"{server}{prefix}/{path}")
            assert (answer.status, answer.json()["from"]) == (200, "b")
            arrived = engine(inference, "b").received[-1]
            assert arrived.path == f"/v1/{path}"
            headers.append({name: value for name, value in arrived.headers.items() if name != "x-request-id"})
        assert headers[0] == headers[1]


async def test_models_are_listed_without_the_prefix(inference: FrontDoor) -> None:
    for path in ("/models", f"/{A}/models", "/models/big", "/models/org%2Fname"):
        assert (await inference.send("GET", path)).status == 200
        server, _, rest = path.partition("/models")
        assert inference.waker.received[-1].path == f"{server}/v1/models{rest}"


async def test_unknown_models_and_servers_are_404_at_once(inference: FrontDoor) -> None:
    connection = await inference.connect()
    await connection.send("POST", CHAT, {"model": "warm-up"})
    held, seconds = len(inference.waker.received), []
    for number in range(50):
        began = time.perf_counter()
        answer = await connection.send("POST", CHAT, {"model": f"nope-{number}"})
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
        seconds.append(time.perf_counter() - began)
        assert f"nope-{number}" in answer.error["message"]
    # No member was asked. One name that was asked for first would have been as slow as all others.
    assert len(inference.waker.received) == held
    assert min(seconds) < 0.02
    for name in ("org/name:Q4:x", ":", 'm:"quoted"\\'):
        answer = await inference.chat(name)
        assert answer.error["message"].startswith(f"No model is served under the name {name}. ")
    answer = await inference.chat("smol", path=f"/{A[::-1]}{CHAT}")
    assert (answer.status, answer.error["code"]) == (404, "server_not_found")


@pytest.mark.parametrize(
    "name", ["x-llamesh-cluster", "X-Llamesh-Cluster", "x-llamesh-claims", "x-llamesh-awake", "x-llamesh-anything"]
)
async def test_a_client_cannot_speak_for_the_mesh(inference: FrontDoor, name: str) -> None:
    answer = await inference.send("POST", CHAT, {"model": "big"}, [(name, f"s:{A}"), (name, "1")])
    assert (answer.status, answer.json()["from"]) == (200, "b")
    arrived = {
        header: value
        for header, value in engine(inference, "b").received[-1].headers.items()
        if header.startswith("x-llamesh")
    }
    assert arrived == {"x-llamesh-cluster": "m:big"}
    refused = await inference.send("POST", "/slots/0", {"model": "big"}, [(name, f"s:{A}")])
    assert refused.status == 404


async def test_a_client_cannot_steer_envoys_retries_or_the_engines_streams(inference: FrontDoor) -> None:
    headers = {
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-conversation-id": "c",
        "authorization": f"Bearer {token()}",
    }
    assert (await inference.chat("big", headers=headers)).status == 200
    received = engine(inference, "b").received[-1].headers
    assert (
        not {"x-envoy-retry-on", "x-envoy-upstream-rq-timeout-ms", "x-conversation-id", "authorization"}
        & received.keys()
    )


async def test_headers_with_an_underscore_are_dropped_and_their_request_is_not(inference: FrontDoor) -> None:
    twins = {"x_llamesh_cluster": f"s:{A}", "content_length": "1", "transfer_encoding": "chunked", "x_api_key": token()}
    answer = await inference.chat("big", headers=twins | {"session_id": "s", "authorization_": "a"})
    assert (answer.status, answer.json()["from"]) == (200, "b")
    assert not [name for name in engine(inference, "b").received[-1].headers if "_" in name]
    assert (await inference.chat("smol", headers={"x_api_key": token(scopes=["infer:big"])})).status == 200


LONG = "c" * 20_000


async def test_an_engine_gets_few_headers_however_long_those_of_the_client_are(inference: FrontDoor) -> None:
    """llama.cpp takes 8 KB of a header and of a path."""
    headers = {"cookie": LONG, "user-agent": LONG, "authorization": "Bearer not-needed", "host": "localhost"}
    headers |= {
        "x-forwarded-proto": "https" * 50,
        "x-forwarded-for": "1.2.3.4",
        "content-type": f"application/json; x={LONG[:9000]}",
    }
    answer = await inference.send("POST", f"{CHAT}?beta=true&x={LONG[:300]}", b'{"model":"big"}', headers)
    assert answer.status == 200
    received = engine(inference, "b").received[-1]
    assert received.path == CHAT
    assert received.headers.keys() == {
        *("host", "content-type", "content-length", "x-request-id", "x-forwarded-proto", "x-llamesh-cluster"),
    }
    assert sum(map(len, received.headers.values())) < 200
    with_token = {"authorization": f"Bearer {token()}", "host": LONG[:250] + ".example", "cookie": LONG}
    assert (await inference.chat("big", headers=with_token)).status == 200
    assert (await inference.send("GET", "/v1/models?x=" + LONG, None, {"cookie": LONG})).status == 200
    assert inference.waker.received[-1].headers.keys() == {
        "host",
        "x-request-id",
        "x-forwarded-proto",
        "x-llamesh-scopes",
    }


async def test_the_front_doors_own_limit_of_headers_is_stated(inference: FrontDoor) -> None:
    answer = await inference.chat("big", headers={"cookie": "c" * (61 << 10)})
    assert (answer.status, answer.error["message"]) == (431, "The headers are longer than 60 KiB together.")
    many = [(f"x-{number}", "1") for number in range(101)]
    answer = await inference.send("POST", CHAT, {"model": "big"}, many)
    assert (answer.status, answer.error["message"]) == (431, "There are more than 100 headers.")


@pytest.mark.parametrize("protocol", ["websocket", "TLS/1.2", "h2c", "foo, bar/2"])
async def test_an_offer_of_another_protocol_is_ignored(inference: FrontDoor, protocol: str) -> None:
    answer = await inference.chat("big", headers={"upgrade": protocol, "connection": "Upgrade"})
    assert answer.status == 200
    assert not {"upgrade", "connection"} & engine(inference, "b").received[-1].headers.keys()


@pytest.mark.parametrize(
    ("method", "path", "model", "headers", "status", "kind"),
    [
        ("POST", "/v1/messages", "big", {"authorization": "Bearer a.b.c"}, 401, "authentication_error"),
        ("POST", f"/{B}/v1/messages", "big", {"x-api-key": "a.b.c"}, 401, "authentication_error"),
        ("POST", "/v1/messages?beta=true", "nope", {}, 404, "not_found_error"),
        ("POST", "/v1/messages/count_tokens", "nope", {}, 404, "not_found_error"),
        ("POST", f"/{A[::-1]}/v1/messages", "big", {}, 404, "not_found_error"),
        ("POST", "/v1/messages/batches", "big", {}, 404, "not_found_error"),
        ("GET", "/v1/messages", "big", {}, 405, "invalid_request_error"),
        ("POST", "/v1/messages", "x" * SMALL_LIMIT, {}, 413, "request_too_large"),
        ("POST", "/v1/messages", "big", {"cookie": "c" * (61 << 10)}, 431, "invalid_request_error"),
        ("POST", "/v1/messages", "big", {"host": "evil.example"}, 403, "permission_error"),
    ],
)
async def test_errors_of_anthropics_api_have_its_shape(
    inference: FrontDoor, method: str, path: str, model: str, headers: dict[str, str], status: int, kind: str
) -> None:
    answer = await inference.send(method, path, {"model": model}, headers)
    assert answer.status == status
    body = answer.json()
    # Headers that are too long are refused before a path is known.
    if status != 431:
        assert body.keys() == {"type", "error"}
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["error"]["message"]


async def test_engines_cors_headers_do_not_get_out(inference: FrontDoor) -> None:
    answer = await inference.chat("big")
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_body_over_the_limit_is_413_and_one_below_passes(inference: FrontDoor) -> None:
    small = json.dumps({"model": "big", "prompt": "x " * (SMALL_LIMIT // 2 - 100)}).encode()
    large = json.dumps({"model": "big", "prompt": "x " * (SMALL_LIMIT // 2)}).encode()
    headers = {"content-type": "application/json"}
    answer = await inference.send("POST", CHAT, small, headers)
    assert answer.status == 200
    assert engine(inference, "b").received[-1].body == small
    for path in (CHAT, f"/{B}{CHAT}"):
        answer = await inference.send("POST", path, large, headers)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("body", [b"", b"{", b"nul", b'{"model": "big"', b"\xff\xfe", b'"text"', b"[]", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_refused(inference: FrontDoor, body: bytes) -> None:
    answer = await inference.send("POST", CHAT, body, {"content-type": "application/json"})
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_discard", -1), ("chat_parser", "x" * 20_000), ("id_slot", 0), ("id_slot", None), ("lora", [{"id": 0}])],
)
async def test_forbidden_fields_are_400_and_named(inference: FrontDoor, field: str, value: Any) -> None:
    for path in (CHAT, f"/{B}{CHAT}"):
        answer = await inference.chat("big", path=path, **{field: value})
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_parameter", field)


async def test_remote_media_is_400(inference: FrontDoor) -> None:
    content = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    answer = await inference.chat("big", messages=[{"role": "user", "content": content}])
    assert (answer.status, answer.error["code"]) == (400, "remote_media")


async def test_a_model_name_never_becomes_a_header_line(inference: FrontDoor) -> None:
    for model in ("big\r\nx-evil: 1", "big\nx", "big\x00", " big", "b" * 9000):
        answer = await inference.chat(model)
        assert answer.status in (400, 404)
        assert answer.error["param"] == "model"


async def test_models_are_listed_by_the_waker_awake_or_not(inference: FrontDoor) -> None:
    names = ("org/big:Q4", "org%2Fbig:Q4", "org%2fbig%3AQ4", "..%2F..%2Fslots")
    for path in ("/v1/models", f"/{A}/v1/models", *(f"/v1/models/{name}" for name in names)):
        answer = await inference.send("GET", path)
        assert (answer.status, answer.json()["from"]) == (200, "waker")
        assert inference.waker.received[-1].path == path
        assert inference.waker.received[-1].headers["x-llamesh-scopes"] == "infer:*"
    for path in ("/v1/models/", f"/{A}/v1/models/"):
        assert (await inference.send("GET", path)).status == 200
        assert inference.waker.received[-1].path == path.rstrip("/")


async def test_the_waker_gets_the_scopes_of_the_token_and_not_those_a_client_sends(
    inference: FrontDoor,
) -> None:
    bearer = {"authorization": f"Bearer {token(scopes=['manage', 'infer:big'])}", "x-llamesh-scopes": "infer:*"}
    assert (await inference.send("GET", "/v1/models", None, bearer)).status == 200
    assert inference.waker.received[-1].headers["x-llamesh-scopes"] == "infer:big"
    answer = await inference.send("GET", f"/{A}/v1/models", None, bearer)
    assert (answer.status, answer.error["code"]) == (403, "scope_missing")


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/health/", "/v1/health/?x=1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health_is_the_controllers_to_say_and_needs_no_token(
    inference: FrontDoor, method: str, path: str
) -> None:
    headers = {"origin": "http://evil.example", "host": "evil.example", "cookie": LONG}
    answer = await inference.send(method, path, None, headers)
    assert answer.status == 200
    assert (inference.waker.received[-1].method, inference.waker.received[-1].path) == (method, "/health")


async def test_http_1_0_is_answered(inference: FrontDoor) -> None:
    answer = await inference.send("POST", CHAT, {"model": "big"}, version="1.0")
    assert answer.status == 200


async def test_every_answer_has_a_request_id_and_a_client_cannot_choose_it(inference: FrontDoor) -> None:
    ids = {(await inference.chat("big", headers={"x-request-id": "mine"})).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert "mine" not in ids
    assert (await inference.chat("nope")).headers["x-request-id"]


async def test_no_filter_script_failed(inference: FrontDoor) -> None:
    """Runs last: none of the requests above made a Lua script stumble, and Envoy refused no configuration."""
    assert "script log" not in inference.log()
    assert not inference.control.stats.refused
