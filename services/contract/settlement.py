"""Settlement: how many tokens a request used. `access_log` calls it for every report of Envoy about a request that has ended.

llama.cpp reports the tokens at the end of an answer, and envoy/lua/answers.lua copies them into Envoy's report: these counts are exact. If
the client left or the engine died before the end, the tokens are estimated. Tokens of the answer: llama.cpp sends each token in an HTTP
chunk of its own, and the difference of two byte counts in the report is the framing of the chunks. envoy/lua/answers.lua adds to the report
the bytes and the framing of the chunks without a token (comments and events of progress), which are subtracted, and the time of the first
token, without which no token came. Tokens of the prompt: the size of the request multiplied by the ratio of tokens to bytes in earlier
reports of the same model.

Invariant: the same work gives the same number in every API. Each token of a prompt counts once, cached or not; an answer counts the tokens
of all its choices.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from llamesh.names import METADATA, USAGE_METADATA

MAX_TOKENS = 1 << 40
"""Higher counts are ignored: no answer has as many tokens."""
BYTES_PER_TOKEN = 4.0
"""Bytes of a request for each token of its prompt, until there are reports about the model."""
BYTES_PER_EVENT = 240.0
"""Bytes of a stream for each token, until there are reports about the model: an event of a chat with a short model name."""
MAX_RATIO = 16.0
"""A report with more than this many times the usual bytes for each token is ignored: a body with media or padding says nothing about texts,
and would make the estimates for other prompts too low."""
MAX_KINDS = 10_000
"""Maximum number of kinds of texts whose ratio is kept; the least recently reported one is dropped first."""

_REMEMBERED_BYTES = 1 << 20
"""The ratio is the weighted mean of about this many bytes; older reports count less."""
_UNCOUNTED_HEAD = 25
"""Bytes of a response's head that Envoy counts as received, but not as header bytes: "HTTP/1.1 200 OK" and separators."""
_SHORT_CHUNK, _SHORT_FRAMING, _LONG_FRAMING = 256, 6, 7
"""A chunk's length has three hexadecimal digits from 256 bytes on, so its framing has 7 bytes instead of 6."""
_STARTED = "first_token_microseconds"
"""What Envoy measures of every stream as soon as its first token comes."""
_TOKENLESS_BYTES, _TOKENLESS_FRAMING = "tokenless_bytes", "tokenless_framing"
"""What Envoy counts of a stream's chunks without a token."""
_COUNTS_ONLY = ("/input_tokens", "/count_tokens")
"""Ends of paths whose answers count a prompt's tokens but use none."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one request. `reported` is True if the engine reported them; False if the answer was cut short and they are estimated."""

    prompt_tokens: int
    completion_tokens: int
    reported: bool = True


class TokenEstimator:
    """Estimates tokens from bytes, by kind of text. Learns the ratio from reported answers and applies it to those that were cut short."""

    def __init__(self, bytes_per_token: float) -> None:
        self._unknown = bytes_per_token, 1.0
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def learn(self, kind: str, length: int, reported: int) -> None:
        """Learn that a text of this kind with `length` bytes had `reported` tokens."""
        if not 0 < length <= reported * self._unknown[0] * MAX_RATIO:
            return
        size, tokens = self._known.pop(kind, (0.0, 0.0))
        fading = min(1.0, _REMEMBERED_BYTES / (size + length))
        self._known[kind] = (size * fading + length, tokens * fading + reported)
        if len(self._known) > MAX_KINDS:
            self._known.popitem(last=False)

    def estimate(self, kind: str, length: int) -> int:
        """Return the estimated number of tokens in `length` bytes."""
        size, tokens = self._known.get(kind, self._unknown)
        return round(length * tokens / size)


class TokenEstimators:
    """The estimators: for prompts of each model by the size of the request, and for events of its streams by their size."""

    def __init__(self) -> None:
        self.prompts = TokenEstimator(BYTES_PER_TOKEN)
        self.events = TokenEstimator(BYTES_PER_EVENT)


def tokens_used(entry: Any, target: str, known: TokenEstimators) -> TokenUsage | None:
    """Return the tokens that the reported request used of `target`; None if no engine worked on it."""
    status = entry.response.response_code.value
    engine_has_it = _reached_engine(entry.common_properties)
    path = entry.request.path.partition("?")[0]
    if path.endswith(_COUNTS_ONLY):
        return None
    if not (200 <= status < 300 or (status == 0 and engine_has_it)):
        return None
    metadata = entry.common_properties.metadata
    answers = _numbers(metadata, METADATA).get("answers", 1)
    counts = _numbers(metadata, USAGE_METADATA)
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    size = entry.request.request_body_bytes
    tried_before = entry.common_properties.upstream_request_attempt_count > 1
    stream = f"{target} {path.rpartition('/')[2]}"
    body = entry.response.response_body_bytes - counts.get(_TOKENLESS_BYTES, 0)
    if completion is not None:
        if answers == 1:
            known.prompts.learn(target, size, prompt or 0)
        if not tried_before and _framing(entry) > _LONG_FRAMING:
            known.events.learn(stream, body, completion)
        return TokenUsage(prompt or 0, completion)
    if prompt is None:
        prompt = known.prompts.estimate(target, size) if engine_has_it else 0
    if _STARTED not in counts:
        return TokenUsage(prompt, 0, reported=False)
    if tried_before:
        # The byte counts include the waker's answer of the first attempt.
        return TokenUsage(prompt, known.events.estimate(stream, body), reported=False)
    return TokenUsage(
        prompt, _chunks(body, _framing(entry) - counts.get(_TOKENLESS_FRAMING, 0), answers), reported=False
    )


def _chunks(body: int, framing: int, answers: int) -> int:
    """Return the number of chunks of a stream with these bytes of body and framing. Each has a token.

    Exact if all chunks except the first of each answer have less than 256 bytes, or if all have more; otherwise within a sixth.
    """
    if framing <= 0 or body <= 0:
        return 0
    short, long = framing // _SHORT_FRAMING, framing // _LONG_FRAMING
    all_short, all_long = framing % _SHORT_FRAMING <= answers, framing % _LONG_FRAMING == 0
    if all_short == all_long:
        all_short = body <= _SHORT_CHUNK * (short + answers)
    return int(short if all_short else long)


def _framing(entry: Any) -> int:
    """Return the bytes from the engine that are neither response head nor body."""
    response = entry.response
    counted = response.upstream_header_bytes_received + response.response_body_bytes + _UNCOUNTED_HEAD
    return int(entry.common_properties.upstream_wire_bytes_received - counted)


def _reached_engine(common: Any) -> bool:
    """Return whether an engine received the request. The waker, which holds a request until an engine is ready, has no such address."""
    address = common.upstream_remote_address
    return bool(common.upstream_wire_bytes_sent) and address.WhichOneof("address") in ("pipe", "socket_address")


def _numbers(metadata: Any, namespace: str) -> dict[str, int]:
    """Return the numbers of a metadata namespace that are plausible counts."""
    if namespace not in metadata.filter_metadata:
        return {}
    fields = metadata.filter_metadata[namespace].fields
    return {
        name: int(value.number_value)
        for name, value in fields.items()
        if value.HasField("number_value") and 0 <= value.number_value < MAX_TOKENS
    }
