"""Settlement: how many tokens a request used, read from Envoy's report of its end (`access_log` calls it for every report).

llama.cpp reports the tokens at the end of an answer, and envoy/lua/answers.lua copies them into Envoy's report: then they are exact. If
the client left or the engine died before that, they are estimated. Tokens of the answer: llama.cpp sends each token in an HTTP chunk of its
own, and the report has two byte counts whose difference is the framing of the chunks. Tokens of the prompt: the size of the request,
multiplied by the ratio that earlier reports of the same model had.

Invariant: the same work gives the same number through every API. Each token of a prompt counts once, cached or not; an answer counts the
tokens of all its choices.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from llamesh.names import METADATA, USAGE_METADATA

MOST_TOKENS = 1 << 40
"""No answer has as many tokens: a higher count is ignored."""
BYTES_PER_TOKEN = 4.0
"""Bytes of a request for each token of its prompt, until a model has reported some."""
BYTES_PER_EVENT = 240.0
"""Bytes of a stream for each token, until a model has reported some: an event of a chat with a short model name."""
IMPLAUSIBLE = 16.0
"""A report with more than this many times the usual bytes for each token is ignored: a body with media or padding says nothing about texts,
and would make the prompts of all others look short."""
KINDS_KNOWN = 10_000
"""Kinds of texts whose ratio is kept; beyond, the least recently reported one is dropped."""

_REMEMBERED_BYTES = 1 << 20
"""The ratio is the mean over this many bytes; older reports fade."""
_UNCOUNTED_HEAD = 25
"""Bytes of a response's head that Envoy counts as received, but not as header bytes: "HTTP/1.1 200 OK" and separators."""
_SHORT_CHUNK, _SHORT_FRAMING, _LONG_FRAMING = 256, 6, 7
"""From 256 bytes on a chunk's length has three hexadecimal digits, so its framing has 7 bytes instead of 6."""
_COUNTS_ONLY = ("/input_tokens", "/count_tokens")
"""Ends of paths whose answers count a prompt's tokens without using any."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one request. `reported`: True if the engine reported them; False if the answer was cut short and they are estimated."""

    prompt_tokens: int
    completion_tokens: int
    reported: bool = True


class TokenEstimator:
    """Estimates tokens from bytes, by kind of text. Learns the ratio from reported answers and applies it to those that were cut short."""

    def __init__(self, bytes_per_token: float) -> None:
        self._unknown = bytes_per_token, 1.0
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def learn(self, kind: str, length: int, told: int) -> None:
        """Learn that a text of this kind with so many bytes had so many tokens."""
        if not 0 < length <= told * self._unknown[0] * IMPLAUSIBLE:
            return
        size, tokens = self._known.pop(kind, (0.0, 0.0))
        fading = min(1.0, _REMEMBERED_BYTES / (size + length))
        self._known[kind] = (size * fading + length, tokens * fading + told)
        if len(self._known) > KINDS_KNOWN:
            self._known.popitem(last=False)

    def estimate(self, kind: str, length: int) -> int:
        """Estimated tokens of so many bytes."""
        size, tokens = self._known.get(kind, self._unknown)
        return round(length * tokens / size)


class TokenEstimators:
    """The estimators: prompts of each model by the bytes of the request, and events of its streams by their bytes."""

    def __init__(self) -> None:
        self.prompts = TokenEstimator(BYTES_PER_TOKEN)
        self.events = TokenEstimator(BYTES_PER_EVENT)


def tokens_used(entry: Any, target: str, known: TokenEstimators) -> TokenUsage | None:
    """Tokens that the reported request used of `target`; None if no engine worked on it."""
    status = entry.response.response_code.value
    engine_has_it = _reached_engine(entry.common_properties)
    path = entry.request.path.partition("?")[0]
    if path.endswith(_COUNTS_ONLY):
        return None
    if not (200 <= status < 300 or (status == 0 and engine_has_it)):
        return None
    metadata = entry.common_properties.metadata
    answers = _numbers(metadata, METADATA).get("answers", 1)
    said = _numbers(metadata, USAGE_METADATA)
    prompt, completion = said.get("prompt_tokens"), said.get("completion_tokens")
    size = entry.request.request_body_bytes
    tried_before = entry.common_properties.upstream_request_attempt_count > 1
    stream = f"{target} {path.rpartition('/')[2]}"
    if completion is not None:
        if answers == 1:
            known.prompts.learn(target, size, prompt or 0)
        if not tried_before and _framing(entry) > _LONG_FRAMING:
            known.events.learn(stream, entry.response.response_body_bytes, completion)
        return TokenUsage(prompt or 0, completion)
    if prompt is None:
        prompt = known.prompts.estimate(target, size) if engine_has_it else 0
    if tried_before:
        # The byte counts include the waker's answer of the first attempt.
        return TokenUsage(prompt, known.events.estimate(stream, entry.response.response_body_bytes), reported=False)
    return TokenUsage(prompt, _tokens_that_came(entry, answers), reported=False)


def _tokens_that_came(entry: Any, answers: int) -> int:
    """Number of chunks of a stream that came from the engine.

    Exact if all chunks except the first of each answer have less than 256 bytes, or if all have more; otherwise within a sixth.
    """
    body, framing = entry.response.response_body_bytes, _framing(entry)
    if framing <= 0 or body <= 0:
        return 0
    short, long = framing // _SHORT_FRAMING, framing // _LONG_FRAMING
    all_short, all_long = framing % _SHORT_FRAMING <= answers, framing % _LONG_FRAMING == 0
    if all_short == all_long:
        all_short = body <= _SHORT_CHUNK * (short + answers)
    return int(short if all_short else long)


def _framing(entry: Any) -> int:
    """Bytes from the engine that are neither response head nor body."""
    response = entry.response
    counted = response.upstream_header_bytes_received + response.response_body_bytes + _UNCOUNTED_HEAD
    return int(entry.common_properties.upstream_wire_bytes_received - counted)


def _reached_engine(common: Any) -> bool:
    """Whether an engine received the request. The waker, which holds a request until an engine is ready, has no such address."""
    address = common.upstream_remote_address
    return bool(common.upstream_wire_bytes_sent) and address.WhichOneof("address") in ("pipe", "socket_address")


def _numbers(metadata: Any, namespace: str) -> dict[str, int]:
    """The numbers of a metadata namespace that are plausible counts."""
    if namespace not in metadata.filter_metadata:
        return {}
    fields = metadata.filter_metadata[namespace].fields
    return {
        name: int(value.number_value)
        for name, value in fields.items()
        if value.HasField("number_value") and 0 <= value.number_value < MOST_TOKENS
    }
