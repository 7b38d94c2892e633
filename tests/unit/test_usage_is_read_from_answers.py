"""The filter that reads the usage of an answer, in LuaJIT without Envoy, on answers as llama.cpp gives them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from lupa.luajit21 import LuaRuntime

from tests.unit.lua_answer import measured, runtime

FAKE = 'He said: "usage":{"prompt_tokens":9} and "timings":{"prompt_n":9,"predicted_n":9}\n\ndata: {"usage":{}}'
TIMINGS = {"cache_n": 40, "prompt_n": 6, "prompt_ms": 1.5, "predicted_n": 15, "predicted_ms": 2.25}


def event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def chat_event(index: int = 0, end: str | None = None, **more: Any) -> bytes:
    delta = {} if end else {"content": FAKE}
    return event({"choices": [{"finish_reason": end, "index": index, "delta": delta}], **more})


CHAT = [*[chat_event() for _ in range(3)], chat_event(end="stop", timings=TIMINGS), b"data: [DONE]\n\n"]
RESPONSES = [
    event({"type": "response.created", "response": {"status": "in_progress"}}, "response.created"),
    event({"type": "response.output_text.delta", "delta": FAKE}, "response.output_text.delta"),
    event(
        {
            "type": "response.completed",
            "response": {
                "output": [{"content": [{"text": FAKE * 20}]}],
                "usage": {"input_tokens": 46, "output_tokens": 15, "input_tokens_details": {"cached_tokens": 40}},
            },
            "timings": TIMINGS,
        },
        "response.completed",
    ),
]
MESSAGES = [
    event(
        {
            "type": "message_start",
            "message": {"usage": {"cache_read_input_tokens": 40, "input_tokens": 6, "output_tokens": 0}},
        },
        "message_start",
    ),
    event({"type": "content_block_delta", "delta": {"text": FAKE}}, "content_block_delta"),
    event({"type": "message_delta", "usage": {"output_tokens": 15}}, "message_delta"),
    event({"type": "message_stop"}, "message_stop"),
]
STREAM = "text/event-stream"
BODY = "application/json; charset=utf-8"


@pytest.fixture(scope="module")
def lua() -> LuaRuntime:
    return runtime()


def read(
    lua: LuaRuntime,
    kind: str,
    pieces: Sequence[bytes],
    status: str = "200",
    *,
    leaves: bool = False,
    timed: bool = False,
    **request: Any,
) -> dict[str, int]:
    numbers = measured(lua, kind, pieces, status, leaves=leaves, **({"counted": True} | request)).numbers
    numbers = {key: value for key, value in numbers.items() if not key.startswith("tokenless_")}
    named = {key.removesuffix("_tokens"): value for key, value in numbers.items()}
    return {key: value for key, value in named.items() if timed or not key.endswith("_microseconds")}


def split(answer: bytes, size: int) -> list[bytes]:
    return [answer[at : at + size] for at in range(0, len(answer), size)] + [b""]


@pytest.mark.parametrize("events", [CHAT, RESPONSES, MESSAGES], ids=["chat", "responses", "messages"])
@pytest.mark.parametrize("size", [1, 2, 7, 61, 240, 1000, 1 << 20])
def test_a_stream_says_the_same_however_it_is_cut(lua: LuaRuntime, events: list[bytes], size: int) -> None:
    said = {"prompt": 46, "completion": 15}
    assert read(lua, STREAM, events) == said
    assert read(lua, STREAM, split(b"".join(events), size)) == said


@pytest.mark.parametrize("events", [CHAT[:-1], RESPONSES, MESSAGES], ids=["chat", "responses", "messages"])
def test_a_client_that_leaves_with_the_last_event_is_told_all_of(lua: LuaRuntime, events: list[bytes]) -> None:
    assert read(lua, STREAM, events, leaves=True) == {"prompt": 46, "completion": 15}


def test_a_stream_without_an_end_reports_the_prompt_if_it_was_sent(lua: LuaRuntime) -> None:
    assert read(lua, STREAM, MESSAGES[:2]) == {"prompt": 46}
    assert read(lua, STREAM, CHAT[:2]) == {}


def test_usage_that_the_client_asked_for_changes_nothing(lua: LuaRuntime) -> None:
    usage = {"prompt_tokens": 46, "completion_tokens": 15, "prompt_tokens_details": {"cached_tokens": 40}}
    last = event({"choices": [], "usage": usage, "timings": TIMINGS})
    assert read(lua, STREAM, [chat_event(), chat_event(end="stop"), last]) == {"prompt": 46, "completion": 15}
    each = [chat_event(timings=TIMINGS | {"predicted_n": number}) for number in range(15)]
    assert read(lua, STREAM, [*each, *CHAT[-2:]]) == {"prompt": 46, "completion": 15}


def verbose(predicted: int = 15) -> dict[str, Any]:
    """What `verbose` adds: the answer again, as llama.cpp's own API gives it."""
    return {"content": FAKE, "prompt": '{[}"}' + FAKE, "timings": TIMINGS | {"predicted_n": predicted}}


def repeated(api: str, number: int, index: int = 0) -> bytes:
    """An event in the middle, with the timings so far."""
    more: dict[str, Any] = {"prompt_progress": {"total": 46}, "timings": TIMINGS | {"predicted_n": number}}
    if api == "responses":
        name = "response.output_text.delta" if number else "response.in_progress"
        return event({"type": name, "delta": FAKE} | more, name)
    if api == "completions":
        choice = {"text": FAKE, "index": index, "logprobs": None, "finish_reason": None}
        return event({"choices": [choice], "__verbose": verbose(number)} | more)
    return chat_event(index, **more)


def last(api: str, index: int = 0) -> list[bytes]:
    """The events that end an answer, with `verbose`; the order of the names is llama.cpp's."""
    usage = {"completion_tokens": 15, "prompt_tokens": 46, "prompt_tokens_details": {"cached_tokens": 40}}
    if api == "responses":
        return RESPONSES[2:]
    if api == "completions":
        choice = {"text": "", "index": index, "logprobs": None, "finish_reason": "stop"}
        return [event({"choices": [choice], "usage": usage, "__verbose": verbose(), "timings": TIMINGS})]
    if api == "chat":
        return [chat_event(index, "stop", timings=TIMINGS, __verbose=verbose())]
    if api == "chat, calls":
        return [chat_event(index, __verbose=verbose()), chat_event(index, "tool_calls", timings=TIMINGS)]
    with_usage = event({"choices": [], "usage": usage, "timings": TIMINGS})
    return [chat_event(index, "stop", __verbose=verbose()), with_usage]


APIS = ["chat", "chat, calls", "chat with usage", "completions", "responses"]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("size", [1, 61, 1000, 1 << 20])
def test_timings_that_are_repeated_count_once(lua: LuaRuntime, api: str, size: int) -> None:
    events = [*[repeated(api, number) for number in range(16)], *last(api)]
    assert read(lua, STREAM, events) == {"prompt": 46, "completion": 15}
    assert read(lua, STREAM, split(b"".join(events), size)) == {"prompt": 46, "completion": 15}


@pytest.mark.parametrize("api", APIS)
def test_timings_that_are_repeated_count_once_for_each_answer(lua: LuaRuntime, api: str) -> None:
    events = [*[repeated(api, 1 + at // 3, at % 3) for at in range(45)], *[e for at in range(3) for e in last(api, at)]]
    assert read(lua, STREAM, events, answers=3, prompts=1) == {"prompt": 46, "completion": 45}


def test_of_an_event_that_is_too_long_to_keep_the_timings_at_its_end_count_once(lua: LuaRuntime) -> None:
    said = {"content": "x" * (1 << 21), "timings": TIMINGS}
    ended = event({"choices": [{"finish_reason": "stop"}], "__verbose": said, "timings": TIMINGS})
    assert read(lua, STREAM, split(ended, 1 << 16)) == {"prompt": 46, "completion": 15}


def test_all_answers_of_a_stream_count_and_each_prompt_once(lua: LuaRuntime) -> None:
    ends = [chat_event(index, "stop", timings=TIMINGS | {"predicted_n": 10 + index}) for index in range(4)]
    assert read(lua, STREAM, [b"data: null\n\n", chat_event(), *ends], answers=4, prompts=2) == {
        "prompt": 92,
        "completion": 46,
    }
    assert read(lua, STREAM, ends[:3], answers=4, prompts=2) == {}


def body(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": [{"text": FAKE}], "usage": {"completion_tokens": 15, "prompt_tokens": 46}}, (46, 15)),
        ({"output": [FAKE], "usage": {"input_tokens": 46, "output_tokens": 15, "x": {"cached_tokens": 40}}}, (46, 15)),
        (
            {"content": FAKE, "usage": {"cache_read_input_tokens": 40, "input_tokens": 6, "output_tokens": 15}},
            (46, 15),
        ),
        ({"usage": {"prompt_tokens": 46, "total_tokens": 46}, "data": [{"embedding": [0.5] * 5000}]}, (46, 0)),
    ],
    ids=["chat", "responses", "messages", "embeddings"],
)
@pytest.mark.parametrize("size", [1, 3, 100, 4096, 1 << 20])
def test_a_whole_body_says_the_same_however_it_is_cut(
    lua: LuaRuntime, answer: dict[str, Any], said: tuple[int, int], size: int
) -> None:
    assert tuple(read(lua, BODY, split(body(answer), size)).values()) in (said, said[::-1])
    assert read(lua, BODY, split(body(answer), size)) == {"prompt": said[0], "completion": said[1]}


def test_answers_that_a_body_does_not_tell_of_count_by_their_length(lua: LuaRuntime) -> None:
    def choice(text: str, **more: Any) -> dict[str, Any]:
        return {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": text}, **more}

    usage = {"completion_tokens": 10, "prompt_tokens": 46}
    call = {"type": "function", "function": {"name": "f", "arguments": 'x"{[' * 10}}
    with_call = {"message": {"content": None, "reasoning_content": "r" * 10, "tool_calls": [call]}}
    answer = {"choices": [choice("a" * 40), choice("b" * 80), choice("", **with_call)], "usage": usage}
    # 40, 80 and 10 + 40 (50 as it is written, with its quotes escaped)
    assert read(lua, BODY, split(body(answer), 50), answers=3, prompts=1) == {"prompt": 46, "completion": 45}
    nothing = {"choices": [choice(""), choice("")], "usage": usage}
    assert read(lua, BODY, [body(nothing)], answers=2, prompts=2) == {"prompt": 92, "completion": 20}
    listed = [{"output": FAKE, "usage": {"input_tokens": 46, "output_tokens": 10 + n}} for n in range(2)]
    assert read(lua, BODY, [body(listed)], answers=2, prompts=1) == {"prompt": 46, "completion": 21}


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (BODY, b'{"usage":null}'),
        (BODY, b'{"usage":{"prompt_tokens":"9"}}'),
        (BODY, b'{"choices":[{"text":"\\'),
        (BODY, b""),
        (STREAM, b"data: null\n\n"),
        (STREAM, b'data: {"timings":{"predicted_n":1'),
        ("text/html", b'{"usage":{"prompt_tokens":9,"completion_tokens":9}}'),
    ],
)
def test_an_answer_without_counts_has_no_usage(lua: LuaRuntime, kind: str, answer: bytes) -> None:
    assert read(lua, kind, [answer]) == {}
    assert read(lua, kind, [answer], answers=2, prompts=1) == {}


@pytest.mark.parametrize(
    ("choices", "microseconds"), [(1, 3 * 30_000 / 14), (2, 2 * 3 * 30_000 / 13)], ids=["one", "two"]
)
def test_the_time_between_tokens_is_that_of_one_choice_after_its_first(
    lua: LuaRuntime, choices: int, microseconds: float
) -> None:
    """Fifteen tokens in four pieces; choices are generated at the same time."""
    timings = TIMINGS | {"predicted_n": 15} if choices == 1 else TIMINGS | {"predicted_n": 8}
    last = TIMINGS | {"predicted_n": 7}
    ends = [chat_event(end="stop", timings=timings)]
    ends += [chat_event(1, end="stop", timings=last)] if choices == 2 else []
    pieces = [chat_event(), chat_event(), chat_event(), b"".join(ends)]
    told = read(lua, STREAM, pieces, timed=True, answers=choices, prompts=1)
    assert told["completion"] == 15
    assert told["token_microseconds"] == round(microseconds)


def test_a_whole_answer_says_nothing_of_the_time_between_tokens(lua: LuaRuntime) -> None:
    usage = body({"usage": {"prompt_tokens": 9, "completion_tokens": 9}})
    assert read(lua, BODY, [usage], timed=True) == {"prompt": 9, "completion": 9}


def test_refusals_and_requests_without_a_token_are_not_read(lua: LuaRuntime) -> None:
    usage = body({"usage": {"prompt_tokens": 9, "completion_tokens": 9}})
    assert read(lua, BODY, [usage], status="503") == {}
    assert read(lua, BODY, [usage], counted=False) == {}
