"""What reaches an engine and what does not: tokens, scopes, smuggled headers, odd paths, long bodies, foreign pages."""

from __future__ import annotations

import socket
import time
from typing import Any

import jwt
import pytest

from tests.mesh.conftest import Served
from tests.mesh.front_door import A_DAY

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def ask(served: Served, path: str = "/v1/chat/completions", **arguments: Any) -> Any:
    """A chat request by name unless told otherwise."""
    arguments.setdefault("json", {"model": served.model, **BODY})
    return served.mesh.http.post(served.mesh.url("inference", path), **arguments)


def key(served: Served, *scopes: str) -> str:
    """A key with these scopes, made through the contract service."""
    answer = served.mesh.call("POST", "/keys", json={"display_name": "test", "scopes": list(scopes)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


@pytest.mark.parametrize("credential", ["not-needed", "sk-x", "sk-proj-0123456789", "none"])
def test_a_dummy_key_counts_as_anonymous(served: Served, credential: str) -> None:
    assert ask(served, headers={"authorization": f"Bearer {credential}"}).status_code == 200


def claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    return {
        "iss": "llamesh",
        "aud": "llamesh",
        "sub": "admin",
        "iat": now,
        "exp": now + A_DAY,
        "scopes": ["infer:*"],
        **changes,
    }


BAD_TOKENS = {
    "unsigned": jwt.encode(claims(), None, algorithm="none"),
    "signed with another key": jwt.encode(claims(), "f" * 32, algorithm="HS256"),
    "three words": "a.b.c",
    "two words": "a.b",
}


@pytest.mark.parametrize("name", BAD_TOKENS)
@pytest.mark.parametrize("port", ["inference", "gateway"])
def test_a_token_that_does_not_verify_is_refused(served: Served, port: str, name: str) -> None:
    headers = {"authorization": f"Bearer {BAD_TOKENS[name]}"}
    if port == "inference":
        answer = ask(served, headers=headers)
        assert answer.json()["error"]["type"]
    else:
        answer = served.mesh.http.get(served.mesh.url("gateway", "/models"), headers=headers)
        assert answer.json()["code"] == 16
    assert answer.status_code == 401


@pytest.mark.parametrize("change", [{"exp": 1}, {"aud": "elsewhere"}, {"iss": "elsewhere"}])
@pytest.mark.parametrize("port", ["inference", "gateway"])
def test_an_expired_or_foreign_token_is_refused(served: Served, port: str, change: dict[str, object]) -> None:
    secret = (served.mesh.home / "secrets" / "jwt_secret").read_text().strip()
    good = {"authorization": "Bearer " + jwt.encode(claims(scopes=["infer:*", "manage"]), secret)}
    bad = {"authorization": "Bearer " + jwt.encode(claims(scopes=["infer:*", "manage"], **change), secret)}
    if port == "inference":
        assert (ask(served, headers=good).status_code, ask(served, headers=bad).status_code) == (200, 401)
    else:
        url = served.mesh.url("gateway", "/models")
        http = served.mesh.http
        assert (http.get(url, headers=good).status_code, http.get(url, headers=bad).status_code) == (200, 401)


def test_a_key_opens_only_the_models_of_its_scope(served: Served) -> None:
    by_name, by_server, other = (
        key(served, f"infer:{served.model}"),
        key(served, f"infer:{served.server_uuid}"),
        key(served, "infer:other"),
    )
    path = f"/{served.server_uuid}/v1/chat/completions"
    assert ask(served, headers=bearer(by_name)).status_code == 200
    assert ask(served, path, headers=bearer(by_server)).status_code == 200
    refused = ask(served, headers=bearer(other))
    assert refused.status_code == 403
    assert refused.json()["error"]["code"]
    assert ask(served, path, headers=bearer(other)).status_code == 403
    assert served.mesh.http.get(served.mesh.url("gateway", "/models"), headers=bearer(by_name)).status_code == 403


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


SMUGGLED = {
    "x-llamesh-cluster": "gateway",
    "x-llamesh-claims": "eyJzdWIiOiJhZG1pbiIsInNjb3BlcyI6WyJhZG1pbiIsIm1hbmFnZSJdfQ",
    "x-llamesh-awake": "1",
    "x-envoy-original-path": "/health",
    "x-envoy-retry-on": "5xx",
    "x-envoy-upstream-rq-timeout-ms": "1",
}


@pytest.mark.parametrize("header", SMUGGLED)
def test_headers_of_the_mesh_from_a_client_change_nothing(served: Served, header: str) -> None:
    smuggled = {header: SMUGGLED[header]}
    assert ask(served, headers=smuggled).status_code == 200
    unknown = ask(served, json={"model": "nobody", **BODY}, headers=smuggled)
    assert unknown.status_code == 404
    assert served.mesh.http.get(served.mesh.url("gateway", "/models"), headers=smuggled).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/", "/slots", "/props", "/metrics", "/lora-adapters", "/completion", "/infill",
        "/v1/chat/completions/control", "/v1/stream", "/v1/streams/lookup", "/v1/chat", "/tokenize",
        "/{server}/slots", "/{server}/props", "/{server}/metrics", "/{server}/v1/../slots", "/{server}/", "/{server}",
        "/{server}/v1/chat/completions/../../../slots", "/00000000-0000-0000-0000-000000000000/v1/chat/completions",
        "/{SERVER}/v1/chat/completions", "/x/{server}/v1/chat/completions",
    ],
)  # fmt: skip
def test_a_path_that_is_not_allowed_is_404_in_openai_shape(served: Served, path: str) -> None:
    path = path.replace("{server}", served.server_uuid).replace("{SERVER}", served.server_uuid.upper())
    status, body = raw(served, path)
    assert status == 404
    assert b'"error"' in body


@pytest.mark.parametrize(
    "path",
    [
        "/{server}%2fv1/chat/completions", "/{server}/v1%2Fchat%2Fcompletions", "/{server}/v1/%2e%2e/slots",
        "/{server}/v1/chat%5ccompletions", "/%2e%2e/{server}/slots", "//{server}//slots", "/{server}/v1//../slots",
        "/{server}/v1/chat/completions%00", "/{server}/v1/chat/completions;a=b", "/{server}/v1\\..\\slots",
    ],
)  # fmt: skip
def test_encoded_and_doubled_slashes_lead_nowhere(served: Served, path: str) -> None:
    status, _ = raw(served, path.replace("{server}", served.server_uuid))
    assert status in (400, 404)


def raw(served: Served, path: str, method: str = "POST", headers: str = "") -> tuple[int, bytes]:
    """Status and body of a request whose path no client library has put right."""
    body = b'{"model":"%s","messages":[],"max_tokens":1}' % served.model.encode()
    with socket.create_connection(("127.0.0.1", served.mesh.ports["inference"]), timeout=60) as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
            + body
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


def test_a_wrong_method_is_405(served: Served) -> None:
    assert raw(served, "/v1/chat/completions", "PUT")[0] == 405


def test_a_body_over_the_limit_is_413_in_openai_shape(served: Served) -> None:
    answer = ask(served, json={"model": served.model, "messages": [{"role": "user", "content": "x" * (17 << 20)}]})
    assert answer.status_code == 413
    assert answer.json()["error"]["message"]


def test_a_body_that_is_not_json_is_refused(served: Served) -> None:
    headers = {"content-type": "text/plain"}
    assert ask(served, json=None, content=b'{"model":"%s"}' % served.model.encode(), headers=headers).status_code == 415
    broken = ask(served, json=None, content=b'{"model": ', headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert broken.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1:1"]
)
def test_a_page_of_another_origin_cannot_use_anonymous_inference(served: Served, origin: str) -> None:
    answer = ask(served, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert ask(served, headers={"origin": origin, "authorization": "Bearer sk-x"}).status_code == 403


def test_a_name_that_was_pointed_here_cannot_use_anonymous_inference(served: Served) -> None:
    assert ask(served, headers={"host": "evil.example"}).status_code == 403


def test_engines_answers_never_allow_other_origins(served: Served) -> None:
    answer = ask(served, headers={**bearer(key(served, "infer:*")), "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.png", "https://evil.example/x.png", "file:///etc/passwd"])
def test_a_remote_media_url_is_refused(served: Served, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    answer = ask(served, json={"model": served.model, "messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (
        "remote_media",
        "messages[0].content[0].image_url.url",
    )


def test_an_unknown_model_is_refused_fast(served: Served) -> None:
    body = {"model": "nobody", **BODY}
    ask(served, json=body)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        assert ask(served, json=body).status_code == 404
        times.append(time.perf_counter() - started)
    # The bound only tells an answer of Envoy's own from one that waited for something. The fastest is the one that a busy machine delayed
    # least.
    assert min(times) < 0.05
