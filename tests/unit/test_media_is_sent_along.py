# ruff: noqa: E501 - a table is read by its rows
"""Media is sent along or refused, at each place from which llama.cpp reads it; what is no media there may be an address."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controller.xds import scripts
from tests.unit.lua_request import LuaFilter, Outcome

ROUTE = LuaFilter(scripts.route({}))


def run(body: Any, *, path: str) -> Outcome:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {":path": path, ":method": "POST", ":authority": "localhost", "content-type": "application/json"}
    return ROUTE.run(headers, {"kind": "inference", "anonymous": True, "host localhost": True}, {}, text)


IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def _part(**part: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": [{"role": "user", "content": [part]}]}


def _source(url: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


# Each place from which llama.cpp reads media, with what it makes of the text there.
PLACES: dict[str, tuple[str, Any]] = {
    "image": ("chat/completions", lambda url: _part(type="image_url", image_url={"url": url})),
    "image, its type last": ("chat/completions", lambda url: _part(image_url={"detail": "low", "url": url}, type="image_url")),
    "audio": ("chat/completions", lambda url: _part(type="input_audio", input_audio={"data": url, "format": "wav"})),
    "audio by url": ("chat/completions", lambda url: _part(type="input_audio", input_audio={"url": url})),
    "video": ("chat/completions", lambda url: _part(type="input_video", input_video={"data": url})),
    "video by url": ("chat/completions", lambda url: _part(type="video_url", video_url={"url": url})),
    "counted": ("chat/completions/input_tokens", lambda url: _part(type="image_url", image_url={"url": url})),
    "responses": ("responses", lambda url: {"model": "smol", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
    "output of a tool": ("responses", lambda url: {"model": "smol", "input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": url}]}]}),
    "messages": ("messages", lambda url: _part(**_source(url))),
    "messages, counted": ("messages/count_tokens", lambda url: _part(**_source(url))),
    "messages, its type last": ("messages", lambda url: _part(source={"url": url, "type": "url"}, type="image")),
    "result of a tool": ("messages", lambda url: _part(type="tool_result", tool_use_id="t", content=[_source(url)])),
    "result, its type last": ("messages", lambda url: _part(content=[_source(url)], tool_use_id="t", type="tool_result")),
    "base64 of messages": ("messages", lambda url: _part(type="image", source={"type": "base64", "media_type": "image/png", "data": url})),
    "embeddings": ("embeddings", lambda url: {"model": "smol", "input": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]}),
    "embeddings, one": ("embeddings", lambda url: {"model": "smol", "content": {"content": [{"type": "input_audio", "input_audio": {"data": url}}]}}),
    "embeddings, beside": ("embeddings", lambda url: {"model": "smol", "input": {"prompt_string": "x", "multimodal_data": [url]}}),
    "completions": ("completions", lambda url: {"model": "smol", "prompt": {"prompt_string": "x", "multimodal_data": [url]}}),
    "completions, many": ("completions", lambda url: {"model": "smol", "prompt": [{"prompt_string": "x", "multimodal_data": [url]}]}),
}  # fmt: skip
"""Name: the path below /v1/, and the body with a text there."""
BASE64_ONLY = {"base64 of messages", "embeddings, beside", "completions", "completions, many"}

ELSEWHERE = [
    *("http://x", "https", "http", "httpAAAA", "http.localhost/x", "HTTPS://x", "ftp://x", "gopher://x", "unix:/run/x", "file:///etc/passwd"),
    *("/etc/passwd", "//host/x", "///x", "//server/share", "/var/lib/images/cat", "cat", "../x", "C:/x", "javascript:x", " data:image/png;base64,AA"),
    *("\tdata:x", "DATA:image/png;base64,AA", "dataimage", "blob:x", "", "=", IMAGE[:50] + ":" + IMAGE, "\u0000http://x", "ｈttp://x", "http://x#" + IMAGE),
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_fetched_for_a_request(place: str) -> None:
    path, body = PLACES[place]
    for url in ELSEWHERE:
        outcome = run(body(url), path=f"/v1/{path}")
        assert (outcome.status, outcome.code) == (400, "remote_media"), url
        escaped = json.dumps(body("URL")).replace("URL", "".join(f"\\u{ord(c):04x}" for c in url)).encode()
        assert run(escaped, path=f"/v1/{path}").code == "remote_media", url


@pytest.mark.parametrize("place", PLACES)
def test_media_that_is_sent_along_passes(place: str) -> None:
    path, body = PLACES[place]
    for data in (
        IMAGE,
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBD",
        "UklGRiQAAABXQVZFZm10IBAAAAABAAEA",
        "//uQxAAAAAAAAAAAAAAA" + "A" * 80,
    ):
        assert run(body(data), path=f"/v1/{path}").status is None, data
        assert run(json.dumps(body(data)).replace("/", "\\/").encode(), path=f"/v1/{path}").status is None, data
    whole = run(body(f"data:image/png;base64,{IMAGE}"), path=f"/v1/{path}")
    assert whole.code == ("remote_media" if place in BASE64_ONLY else None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", _part(type="text", text="see http://x", url="http://x")),
        ("chat/completions", {"model": "smol", "messages": [{"role": "user", "content": "a", "image_url": "http://x", "url": "file:///x"}]}),
        ("chat/completions", {"model": "smol", "messages": [], "metadata": {"image_url": "http://x"}, "image_url": {"url": "http://x"}}),
        ("messages", _part(type="document", source={"type": "url", "url": "https://x/y.pdf"})),
        ("messages", _part(source={"type": "url", "url": "https://x/y.pdf"}, type="document")),
        ("messages", _part(type="document", source={"type": "base64", "data": "JVBERi0xLjQ" * 2000})),
        ("messages", _part(type="search_result", source="https://x/y", title="x", content=[{"type": "text", "text": "x"}])),
        ("messages", _part(type="web_search_tool_result", content=[{"type": "web_search_result", "url": "https://x"}])),
        ("messages", _part(type="tool_use", id="t", name="fetch", input={"url": "http://x", "source": {"url": "ftp://x"}, "id_slot": 1})),
        ("messages", _part(type="tool_result", tool_use_id="t", content=[{"type": "document", "source": {"type": "url", "url": "http://x"}}])),
        ("responses", {"model": "smol", "input": "Hi", "tools": [{"type": "mcp", "server_url": "https://x", "headers": {"url": "y"}}]}),
    ],
)  # fmt: skip
def test_addresses_that_are_no_media_pass(path: str, body: dict[str, Any]) -> None:
    assert run(body, path=f"/v1/{path}").status is None
