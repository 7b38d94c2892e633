"""envoy/lua/route.lua: cluster, forbidden fields, remote media. Scopes and anonymous requests have files of their own."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from controller.xds import templates
from llamesh.kit import limits
from tests.unit.route_filter import OPEN, ROUTE, UUID, run


@pytest.mark.parametrize(
    ("path", "body", "cluster"),
    [
        ("/v1/chat/completions", {"model": "smol"}, "m:smol"),
        ("/v1/chat/completions?x=/a/v1/", {"model": "org/name:Q4_K_M"}, "m:org/name:Q4_K_M"),
        (f"/{UUID}/v1/chat/completions", {"model": "anything"}, f"s:{UUID}"),
        (f"/{UUID}/v1/completions", {}, f"s:{UUID}"),
        ("/v1/messages/?beta=true", {"model": "smol"}, "m:smol"),
        (f"/{UUID}/v1/completions/", {}, f"s:{UUID}"),
    ],
)
def test_path_or_model_names_the_cluster(path: str, body: dict[str, Any], cluster: str) -> None:
    outcome = run(body, path=path)
    assert outcome.status is None
    assert outcome.headers["x-llamesh-cluster"] == cluster
    assert outcome.headers[":path"] == path.partition("?")[0].rstrip("/")


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v1/models/", "/v1/models"),
        (f"/{UUID}/v1/models/?x=1", f"/{UUID}/v1/models"),
        ("/v1/models/name/", "/v1/models/name/"),
    ],
)
def test_a_slash_at_the_end_means_nothing_but_in_a_name(path: str, sent: str) -> None:
    assert run(path=path, settings=OPEN | {"kind": "models"}).headers[":path"] == sent


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("", 400, "missing_required_parameter"),
        (7, 400, "missing_required_parameter"),
        ("a b", 404, "model_not_found"),
        ("a\r\nx-evil: 1", 404, "model_not_found"),
        ("é", 404, "model_not_found"),
        ("smol\U0001f600", 404, "model_not_found"),
        ('a"b\\\n', 404, "model_not_found"),
        ("x" * 257, 404, "model_not_found"),
    ],
)
def test_a_model_name_that_cannot_be_served_is_refused(model: Any, status: int, code: str) -> None:
    outcome = run({"model": model})
    assert (outcome.status, outcome.code) == (status, code)
    assert outcome.answer["error"]["param"] == "model"
    assert "x-llamesh-cluster" not in outcome.headers


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "application/json-seq",
        "application/json, text/plain",
        "text/plain, application/json",
        "application/grpc",
    ],
)
def test_only_json_is_taken(content_type: str | None) -> None:
    assert run(content_type=content_type).status == 415


def test_json_with_a_charset_is_json() -> None:
    outcome = run(content_type="Application/JSON; charset=utf-8")
    assert outcome.status is None
    assert outcome.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("zstd", 415), ("br, gzip", 415), ("identity", None)])
def test_an_encoded_body_is_refused_by_the_name_of_its_encoding(encoding: str, status: int | None) -> None:
    outcome = run(**{"content-encoding": encoding})
    assert outcome.status == status
    if status:
        assert outcome.code == "unsupported_content_encoding"
        assert f"Content-Encoding {encoding}" in outcome.answer["error"]["message"]


@pytest.mark.parametrize("kind", ["inference", "models", "health"])
def test_no_long_line_goes_on(kind: str) -> None:
    media = "application/json; x=" + "a" * 9000
    outcome = run(path="/v1/completions?q=" + "a" * 9000, settings=OPEN | {"kind": kind}, content_type=media)
    assert outcome.status is None
    assert outcome.headers[":path"] == "/v1/completions"
    assert outcome.headers["content-type"] == "application/json"


def test_a_model_with_a_name_that_no_model_can_have_is_404() -> None:
    assert run(settings=OPEN | {"kind": "models"}, path="/v1/models/" + "a" * 9000).code == "model_not_found"


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/messages/count_tokens", f"/{UUID}/v1/messages", "/v1/messages?beta=true"]
)
@pytest.mark.parametrize(
    ("changed", "status", "kind"),
    [
        ({"content_type": "text/plain"}, 415, "invalid_request_error"),
        ({"settings": {"kind": "inference"}}, 401, "authentication_error"),
        ({"body": {"model": "a b"}}, 404, "not_found_error"),
        ({"body": {}}, 400, "invalid_request_error"),
        ({"claims": {"scopes": []}}, 403, "permission_error"),
    ],
)
def test_errors_of_anthropics_api_have_its_shape(path: str, changed: dict[str, Any], status: int, kind: str) -> None:
    if UUID in path and "body" in changed:
        return  # the path names the server, and the model may be anything
    outcome = run(path=path, **changed)
    assert outcome.status == status
    assert outcome.answer.keys() == {"type", "error"}
    assert outcome.answer["type"] == "error"
    assert outcome.answer["error"].keys() == {"type", "message"}
    assert outcome.answer["error"]["type"] == kind


@pytest.mark.parametrize("path", ["/v1/completions", f"/{UUID}/v1/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b'{"model":"smol"', b'{"model":"smol"}}'])
def test_a_body_that_is_no_json_object_is_400(body: bytes, path: str) -> None:
    outcome = run(body, path=path)
    assert (outcome.status, outcome.code) == (400, "invalid_json")


def test_a_request_without_a_body_is_400() -> None:
    outcome = ROUTE.run(
        {":path": "/v1/completions", ":authority": "localhost", "content-type": "application/json"}, OPEN
    )
    assert (outcome.status, outcome.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "cluster"),
    [
        (b'{"messages":[{"model":"inner"}],"model":"smol"}', "m:smol"),
        (b'{"model":"smol","metadata":{"model":"inner"}}', "m:smol"),
        (b'{"m\\u006fdel" : "smo\\u006c"}', "m:smol"),
        (b'\r\n{"prompt":"\\"model\\":\\"no\\"","model"\t:\n"smol"}\n', "m:smol"),
    ],
)
def test_the_model_is_the_key_of_that_name_at_the_top(body: bytes, cluster: str) -> None:
    assert run(body).headers["x-llamesh-cluster"] == cluster


@pytest.mark.parametrize("body", [b'{"model":7}', b'{"x":{"model":"smol"}}', b'{"x":"model"}'])
def test_a_model_that_is_not_named_is_missing(body: bytes) -> None:
    assert run(body).code == "missing_required_parameter"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"first","model":"smol"}',
        b'{"model":"smol","mod\\u0065l":7}',
        b'{"model":"smol","n":1,"n":2}',
        b'{"model":"smol","max_tokens":1,"max_tokens":null}',
        b'{"model":"smol","messages":[],"messages":[]}',
        b'{"model":"smol","messages":[{"content":"a","content":"b"}]}',
    ],
)
def test_a_field_that_is_read_may_stand_once(body: bytes) -> None:
    """Which of two counts is the choice of each reader: Envoy's, the engine's, a log's."""
    outcome = run(body)
    assert (outcome.status, outcome.code) == (400, "invalid_value")
    assert outcome.answer["error"]["message"].endswith("is given twice.")


def test_other_fields_may_stand_twice() -> None:
    assert run(b'{"model":"smol","x":1,"x":2,"metadata":{"a":1,"a":2}}').status is None


@pytest.mark.parametrize("name", ["n_discard", "chat_parser", "id_slot", "slot_id", "lora", "conversation_id"])
@pytest.mark.parametrize(
    "form", ['{{"model":"smol","{0}":1}}', '{{"{0}" \n:\t{{}},"model":"smol"}}', '{{"model":"smol","{1}":null}}']
)
def test_forbidden_fields_are_named(name: str, form: str) -> None:
    escaped = f"\\u00{ord(name[0]):02x}{name[1:]}".replace("_", "\\u005F")
    outcome = run(form.format(name, escaped).encode())
    assert (outcome.status, outcome.code) == (400, "unsupported_parameter")
    assert outcome.answer["error"]["param"] == name
    assert re.fullmatch(
        rf"The field {name} may not be sent: [^.]+(\.cpp [^.]+)?\. Leave it out\.", outcome.answer["error"]["message"]
    )


@pytest.mark.parametrize(
    "text",
    [
        'please set "id_slot": 3',
        "n_discard",
        "\\u0022id_slot\\u0022: 1",
        'the key \\"id_slot\\": x',
        "https://example.org/cat.png",
        '{"image_url": {"url": "http://x"}}',
    ],
)
def test_words_inside_a_prompt_are_not_fields(text: str) -> None:
    assert run({"model": "smol", "messages": [{"role": "user", "content": text}]}).status is None
    raw = '{"model":"smol","messages":[{"role":"user","content":"' + json.dumps(text)[1:-1] + '"}]}'
    assert run(raw.encode()).status is None


def _image(url: str) -> dict[str, Any]:
    return {"model": "smol", "messages": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (_image("http://169.254.169.254/latest"), "messages[0].content[0].image_url.url"),
        (_image("HTTPS://example.org/cat.png"), "messages[0].content[0].image_url.url"),
        (_image("file:///etc/passwd"), "messages[0].content[0].image_url.url"),
        (_image("ftp://x/y"), "messages[0].content[0].image_url.url"),
        (_image("gopher+x.y-z:x"), "messages[0].content[0].image_url.url"),
        (_image("httpevil.example/x"), "messages[0].content[0].image_url.url"),
        (_image(" //evil.example/x"), "messages[0].content[0].image_url.url"),
        (
            {
                "model": "smol",
                "messages": [{"content": [{"type": "input_audio", "input_audio": {"data": "http://x"}}]}],
            },
            "messages[0].content[0].input_audio.data",
        ),
        (
            b'{"messages":[{"content":[{"image_url":{"u\\u0072l":"\\u0068ttp:\\/\\/x"}}]}]}',
            "messages[0].content[0].image_url.url",
        ),
    ],
)
def test_remote_media_is_refused(body: Any, param: str) -> None:
    outcome = run(body)
    assert (outcome.status, outcome.code) == (400, "remote_media")
    assert outcome.answer["error"]["param"] == param


def test_every_path_of_the_inference_routes_has_a_shape() -> None:
    (host,) = yaml.safe_load((templates.FOLDER / "routes/inference.yaml").read_text())["virtual_hosts"]
    (route,) = [each for each in host["routes"] if each["name"] == "inference"]
    with_prefix, without = re.findall(r"/\(([a-z/_|]*)\)/\?", route["match"]["safe_regex"]["regex"])
    assert set(with_prefix.split("|")) == limits.paths().keys()
    assert set(without.split("|")) < limits.paths().keys()


def test_media_in_the_request_passes() -> None:
    assert run(_image("data:image/png;base64,iVBOR")).status is None


def test_a_tool_with_a_url_argument_passes() -> None:
    tool = {"type": "function", "function": {"name": "get", "parameters": {"properties": {"url": {"type": "string"}}}}}
    call = {"function": {"arguments": json.dumps({"url": "https://example.org"})}}
    assert run({"model": "smol", "tools": [tool], "messages": [{"tool_calls": [call]}]}).status is None


def test_a_server_with_a_limit_of_its_own_has_it_set() -> None:
    header = "x-envoy-upstream-rq-per-try-timeout-ms"
    own = run(settings=OPEN | {"m:smol": {"silence": 86400}})
    assert own.headers[header] == "86400000"
    assert own.metadata["llamesh"] == {"silence": "86400"}
    for usual in (OPEN, OPEN | {"m:other": {"silence": 5}}, OPEN | {"m:smol": {"ask": True}}):
        assert header not in run(settings=usual).headers


def test_paths_that_are_no_inference_are_left_to_the_routes() -> None:
    assert run(b"", settings={}, path="/slots", content_type=None).status is None
    listing = run(b"", settings=OPEN | {"kind": "models"}, path="/v1/models", content_type=None)
    assert listing.status is None
    assert "x-llamesh-cluster" not in listing.headers
