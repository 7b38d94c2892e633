"""What a request has used, from reports as Envoy 1.40 made them of requests to llama.cpp."""

from __future__ import annotations

from typing import Any

import pytest

from llamesh import names
from llamesh.kit.envoy_api import message_class
from services.contract import settlement
from services.contract.settlement import TokenEstimator, TokenEstimators, TokenUsage, tokens_used


def report(*, status: int = 200, path: str = "/v1/chat/completions", request_bytes: int = 100, **more: Any) -> Any:
    """Envoy's report of a request that an engine has had."""
    made = message_class("envoy.data.accesslog.v3.HTTPAccessLogEntry")()
    made.request.path = path
    made.request.request_body_bytes = request_bytes
    made.response.response_code.value = status
    made.response.response_body_bytes = more.get("body", 0)
    made.response.upstream_header_bytes_received = more.get("head", 0)
    common = made.common_properties
    common.upstream_request_attempt_count = more.get("attempts", 1)
    common.upstream_wire_bytes_received = more.get("wire", 0)
    common.upstream_wire_bytes_sent = more.get("sent", 300)
    if more.get("engine", True):
        common.upstream_remote_address.pipe.path = "/run/engine.sock"
    else:
        common.upstream_remote_address.envoy_internal_address.server_listener_name = "held"
    for namespace in ("usage", "request"):
        name = names.USAGE_METADATA if namespace == "usage" else names.METADATA
        for key, value in more.get(namespace, {}).items():
            common.metadata.filter_metadata[name].fields[key].number_value = value
    return made


STARTED = {"first_token_microseconds": 1500}
"""What Envoy has measured of a stream whose first token came."""


def settle(entry: Any) -> TokenUsage | None:
    return tokens_used(entry, "smol", TokenEstimators())


def test_the_usage_that_the_engine_reported_counts() -> None:
    assert settle(report(usage={"prompt_tokens": 46, "completion_tokens": 15})) == TokenUsage(46, 15)
    assert settle(report(usage={"prompt_tokens": 46, "completion_tokens": 30}, request={"answers": 2})) == TokenUsage(
        46, 30
    )


@pytest.mark.parametrize(
    ("api", "wire", "body", "answers", "tokens"),
    [
        ("chat", 3119, 2867, 1, 11),
        ("completions", 3077, 2820, 1, 12),
        ("responses", 2083, 1849, 1, 8),
        ("messages", 1854, 1608, 1, 10),
        ("chat, two choices", 9969, 9554, 2, 38),
        ("a name of a model that makes all chunks long", 160 + 25 + 20 * 300 + 20 * 7, 20 * 300, 1, 20),
        ("no chunk", 160 + 25, 0, 1, 0),
    ],
)
def test_a_cut_stream_counts_the_tokens_received(api: str, wire: int, body: int, answers: int, tokens: int) -> None:
    found = settle(report(wire=wire, head=160, body=body, request={"answers": answers}, usage=STARTED))
    assert found == TokenUsage(25, tokens, reported=False), api


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_stream_that_was_cut_before_its_first_token_has_no_tokens(attempts: int) -> None:
    # Two comments and three events of progress.
    cut = report(wire=160 + 25 + 2 * 3 + 3 * 180 + 5 * 6, head=160, body=2 * 3 + 3 * 180, attempts=attempts)
    assert settle(cut) == TokenUsage(25, 0, reported=False)


@pytest.mark.parametrize("sizes", [[190, 181, 183], [290, 281, 283]])
def test_comments_and_progress_of_a_cut_stream_are_no_tokens(sizes: list[int]) -> None:
    without = [3, 3, 187, 290, 3]
    framing = [sum(4 + len(f"{size:x}") for size in each) for each in (sizes, without)]
    wire = 160 + 25 + sum(sizes + without) + sum(framing)
    told = STARTED | {"tokenless_bytes": sum(without), "tokenless_framing": framing[1]}
    found = settle(report(wire=wire, head=160, body=sum(sizes + without), usage=told))
    assert found == TokenUsage(25, 3, reported=False)


def test_comments_and_progress_of_a_request_that_was_sent_twice_are_no_tokens() -> None:
    told = STARTED | {"tokenless_bytes": 2400, "tokenless_framing": 70}
    found = settle(report(body=4800, attempts=2, usage=told))
    assert found == TokenUsage(25, 10, reported=False)


@pytest.mark.parametrize("shortest", range(200, 300, 3))
@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 50, 400])
def test_the_count_is_within_a_sixth_for_any_size_of_chunks(shortest: int, tokens: int) -> None:
    sizes = [2 * shortest] + [shortest + number % 13 for number in range(1, tokens)]
    framing = sum(4 + len(f"{size:x}") for size in sizes)
    found = settle(report(wire=160 + 25 + sum(sizes) + framing, head=160, body=sum(sizes), usage=STARTED))
    assert found is not None
    assert abs(found.completion_tokens - tokens) <= max(1, tokens / 6)
    if max(sizes[1:], default=0) < 256 and tokens > 8:
        assert found.completion_tokens == tokens


def test_a_prompt_that_was_not_told_is_estimated_by_those_that_were() -> None:
    lengths = TokenEstimators()
    for size in (100, 300, 200):
        tokens_used(
            report(request_bytes=size, usage={"prompt_tokens": size / 2, "completion_tokens": 1}), "smol", lengths
        )
    cut = report(request_bytes=1000, status=0)
    assert tokens_used(cut, "smol", lengths) == TokenUsage(500, 0, reported=False)
    assert tokens_used(cut, "other", lengths) == TokenUsage(250, 0, reported=False)
    # Several prompts or answers say nothing of the length of one.
    tokens_used(
        report(request_bytes=10, usage={"prompt_tokens": 900, "completion_tokens": 1}, request={"answers": 2}),
        "x",
        lengths,
    )
    assert tokens_used(cut, "x", lengths) == TokenUsage(250, 0, reported=False)


def test_prompts_are_remembered_for_so_many_models_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlement, "MAX_KINDS", 2)
    lengths = TokenEstimator(4.0)
    for target in ("a", "b", "a", "c"):
        lengths.learn(target, 100, 100)
    assert [lengths.estimate(target, 100) for target in ("a", "b", "c")] == [100, 25, 100]


def test_a_body_that_is_not_text_does_not_change_the_estimate() -> None:
    lengths = TokenEstimator(4.0)
    lengths.learn("a", 4000, 1000)
    lengths.learn("a", 14 << 20, 30)
    lengths.learn("a", 100, 0)
    assert lengths.estimate("a", 2764) == 691


def test_older_prompts_fade() -> None:
    lengths = TokenEstimator(4.0)
    lengths.learn("a", 1 << 20, 1 << 19)
    for _ in range(5):
        lengths.learn("a", 1 << 20, 1 << 18)
    assert lengths.estimate("a", 1000) == pytest.approx(258, abs=8)


@pytest.mark.parametrize(
    "entry",
    [
        report(path="/v1/chat/completions/input_tokens", usage={"prompt_tokens": 3, "completion_tokens": 1}),
        report(path="/v1/messages/count_tokens?beta=true"),
        report(status=404),
        report(status=503),
        report(status=0, engine=False),
        report(status=0, sent=0),
    ],
    ids=["input_tokens", "count_tokens", "not found", "unavailable", "left the waker", "left the queue"],
)
def test_a_request_that_no_engine_served_has_no_usage(entry: Any) -> None:
    assert settle(entry) is None


@pytest.mark.parametrize("wrong", [-1, 1e300, float("nan"), float("inf")])
def test_numbers_that_no_answer_has_are_not_believed(wrong: float) -> None:
    found = settle(report(usage={"prompt_tokens": 5, "completion_tokens": wrong}))
    assert found == TokenUsage(5, 0, reported=False)


def test_of_a_cut_stream_that_was_woken_the_tokens_are_estimated_by_its_bytes() -> None:
    # As Envoy counted a stream of 11 tokens behind a waker that answered {}: the framing alone would be 18.
    woken = report(wire=3329, head=326, body=2867, attempts=2, usage=STARTED)
    known = TokenEstimators()
    assert tokens_used(woken, "smol", known) == TokenUsage(25, 12, reported=False)
    told = {"prompt_tokens": 25, "completion_tokens": 15}
    tokens_used(report(wire=4378, head=160, body=4090, usage=told), "smol", known)
    assert tokens_used(woken, "smol", known) == TokenUsage(25, 11, reported=False)
    # A whole answer says nothing of events.
    tokens_used(report(wire=885, head=160, body=700, usage=told), "smol", known)
    assert tokens_used(woken, "smol", known) == TokenUsage(25, 11, reported=False)
