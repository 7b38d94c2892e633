"""The filter that measures answers, in LuaJIT without Envoy: when the first token of a stream has passed, for each API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lupa.luajit21 import LuaRuntime

from tests.unit.lua_answer import PIECE_MICROSECONDS, measured, runtime

STREAM = "text/event-stream"
PING = b":\n\n"
TOKENS = 15
MAX_EVENT = 65536
"""As in envoy/lua/first_token.lua."""
FAKE = 'He said: "prompt_progress":{} and "type":"response.created"\n\ndata: {"error":{}}'


def event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def chat(delta: dict[str, Any], **more: Any) -> bytes:
    return event({"choices": [{"finish_reason": None, "index": 0, "delta": delta}], **more})


def typed(name: str, **more: Any) -> bytes:
    return event({"type": name, **more}, name)


PROGRESS = {"prompt_progress": {"total": 3900, "cache": 4, "processed": 512, "time_ms": 9}}
BEFORE = {
    "chat": [chat({"role": "assistant", "content": None}, **PROGRESS)] * 3,
    "completions": [event({"choices": [{"text": "", "index": 0}], **PROGRESS})] * 3,
    "responses": [
        typed("response.created", response={"status": "in_progress"})
        + typed("response.in_progress", response={}, **PROGRESS),
        typed("response.in_progress", response={}, **PROGRESS),
    ],
    "messages": [typed("message_start", message={"usage": {"input_tokens": 46, "output_tokens": 0}})],
    "several prompts": [b"data: null\n\n"],
}
FIRST = {
    "chat": chat({"content": FAKE}),
    "completions": event({"choices": [{"text": FAKE, "index": 0}]}),
    "responses": typed("response.output_item.added", item={}) + typed("response.output_text.delta", delta=FAKE),
    "messages": typed("content_block_start", content_block={"text": ""}) + typed("content_block_delta", delta=FAKE),
    "several prompts": event({"choices": [{"text": FAKE, "index": 1}]}),
}
END = event({"choices": [{"finish_reason": "stop"}], "timings": {"prompt_n": 9, "cache_n": 0, "predicted_n": TOKENS}})


@pytest.fixture(scope="module")
def lua() -> LuaRuntime:
    return runtime()


@pytest.mark.parametrize("api", list(FIRST))
@pytest.mark.parametrize("counted", [True, False])
def test_pings_and_progress_are_no_first_token(lua: LuaRuntime, api: str, counted: bool) -> None:
    before = [PING, *BEFORE[api], PING]
    told = measured(lua, STREAM, [*before, FIRST[api], FIRST[api], END], counted=counted).numbers
    assert told["first_token_microseconds"] == (len(before) + 1) * PIECE_MICROSECONDS


@pytest.mark.parametrize("api", list(FIRST))
@pytest.mark.parametrize("size", [1, 7, 61, 1 << 20])
def test_the_first_token_is_the_same_however_a_stream_is_cut(lua: LuaRuntime, api: str, size: int) -> None:
    before = PING + b"".join(BEFORE[api])
    stream = before + FIRST[api] + END
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    told = measured(lua, STREAM, pieces).numbers["first_token_microseconds"]
    event_ends = len(before) + FIRST[api].index(b"\n\n") + 2
    assert told == -(-event_ends // size) * PIECE_MICROSECONDS


def test_after_the_first_token_of_an_uncounted_stream_the_script_has_ended(lua: LuaRuntime) -> None:
    told = measured(lua, STREAM, [PING, *[FIRST["chat"]] * 100, END])
    assert (told.pieces, told.numbers) == (2, {"first_token_microseconds": 2 * PIECE_MICROSECONDS})


def test_the_time_between_tokens_begins_with_the_first_token(lua: LuaRuntime) -> None:
    told = measured(lua, STREAM, [PING, *BEFORE["chat"], FIRST["chat"], END], counted=True).numbers
    assert told["token_microseconds"] == round(PIECE_MICROSECONDS / (TOKENS - 1))


def test_a_clock_that_is_set_back_makes_no_negative_time(lua: LuaRuntime) -> None:
    stream = [PING, FIRST["chat"], FIRST["chat"], END]
    told = measured(lua, STREAM, stream, counted=True, pause=-PIECE_MICROSECONDS).numbers
    assert (told["first_token_microseconds"], told["token_microseconds"]) == (0, 0)


def test_an_event_without_an_end_counts_as_the_first_token_before_it_fills_the_memory(lua: LuaRuntime) -> None:
    piece = b"data: " + b"x" * (MAX_EVENT // 4)
    told = measured(lua, STREAM, [PING, *[piece] * 100])
    assert (told.pieces, told.numbers) == (5, {"first_token_microseconds": 5 * PIECE_MICROSECONDS})


@pytest.mark.parametrize(
    "stream",
    [
        [PING],
        [PING, event({"error": {"code": 500, "message": "x"}})],
        [typed("error", error={"message": "x"})],
        [*BEFORE["responses"], b"data: [DONE]\n\n"],
    ],
    ids=["left", "error", "error of messages", "no token"],
)
@pytest.mark.parametrize("counted", [True, False])
def test_a_stream_that_ends_before_its_first_token_has_no_time(
    lua: LuaRuntime, stream: list[bytes], counted: bool
) -> None:
    assert "first_token_microseconds" not in measured(lua, STREAM, stream, counted=counted).numbers


@pytest.mark.parametrize("api", list(FIRST))
def test_chunks_without_a_token_are_counted_with_their_framing(lua: LuaRuntime, api: str) -> None:
    without = [PING, *BEFORE[api], PING]
    stream = [*without, FIRST[api], PING, FIRST[api], FIRST[api], PING]
    told = measured(lua, STREAM, stream, counted=True).numbers
    chunks = [len(piece) for piece in [*without, PING, PING]]
    assert told["tokenless_bytes"] == sum(chunks)
    assert told["tokenless_framing"] == sum(len(f"{length:x}") + 4 for length in chunks)


@pytest.mark.parametrize("cut", [1, 30, 80])
def test_a_token_that_arrives_in_two_pieces_is_no_chunk_without_one(lua: LuaRuntime, cut: int) -> None:
    whole = [PING, *BEFORE["chat"], FIRST["chat"]]
    pieces = [*whole[:-1], FIRST["chat"][:cut], FIRST["chat"][cut:]]
    found = [measured(lua, STREAM, each, counted=True).numbers for each in (whole, pieces)]
    for name in ("tokenless_bytes", "tokenless_framing"):
        assert found[0][name] == found[1][name] > 0


@pytest.mark.parametrize("api", list(FIRST))
def test_events_in_the_chunk_of_a_token_are_no_chunk_without_one(lua: LuaRuntime, api: str) -> None:
    """llama.cpp sends the events that begin a response or a message in one chunk with the first token."""
    pieces = [b"".join(BEFORE[api]) + FIRST[api], PING + FIRST[api]]
    assert "tokenless_bytes" not in measured(lua, STREAM, pieces, counted=True).numbers


def test_chunks_of_requests_without_a_token_of_access_are_not_counted(lua: LuaRuntime) -> None:
    assert measured(lua, STREAM, [PING, FIRST["chat"]]).numbers.keys() == {"first_token_microseconds"}


@pytest.mark.parametrize("counted", [True, False])
def test_an_answer_that_is_not_streamed_has_no_first_token(lua: LuaRuntime, counted: bool) -> None:
    body = b'{"choices":[{"text":"x"}],"usage":{"prompt_tokens":9,"completion_tokens":9}}'
    assert "first_token_microseconds" not in measured(lua, "application/json", [body], counted=counted).numbers
