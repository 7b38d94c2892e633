"""What a request has used, read from Envoy's report of its end.

llama.cpp says what it used with the end of an answer, and the front door copies that into the report (envoy/lua/answers.lua). If there was
no end, because the client left or the engine died, the tokens are those that came: llama.cpp sends each in an HTTP chunk of its own, and
the framing of the chunks is the difference between two counts of bytes in the report.

Invariant: the same work is the same number, whichever API asked for it: a prompt is all of its tokens, in the cache or not, once; an
answer is the tokens of all choices.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from llamesh.names import METADATA, USAGE_METADATA

MOST_TOKENS = 1 << 40
"""More than any answer has: such a count is not believed."""
BYTES_PER_TOKEN = 4.0
"""Bytes of a request for each token of its prompt, while nothing is known of a model."""
BYTES_PER_EVENT = 240.0
"""Bytes of a stream for each token, while nothing is known of a model: an event of a chat with a short name of the model."""
IMPLAUSIBLE = 16.0
"""Times as many bytes for each token as are usual, and nothing is learnt: a body with media or padding says nothing of texts, and would
make the prompts of everybody else look short."""
KINDS_KNOWN = 10_000
"""Kinds of texts that are remembered; beyond, the one that was heard of least recently is forgotten."""

_REMEMBERED_BYTES = 1 << 20
"""So many bytes of requests make the mean; older ones fade."""
_UNCOUNTED_HEAD = 25
"""Bytes of a response's head that Envoy counts as received, but not as header bytes: "HTTP/1.1 200 OK" and separators."""
_SHORT_CHUNK, _SHORT_FRAMING, _LONG_FRAMING = 256, 6, 7
"""From 256 bytes on a chunk's length has three hexadecimal digits, so its framing has 7 bytes instead of 6."""
_COUNTS_ONLY = ("/input_tokens", "/count_tokens")
"""Ends of paths whose answers count a prompt's tokens without using any."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one request. `told`: True if the engine reported the counts; False if the answer was cut short and they are estimated."""

    prompt_tokens: int
    completion_tokens: int
    reported: bool = True


class TokenEstimator:
    """How many tokens texts of each kind have by their bytes, learnt from answers that told: for those that were cut short."""

    def __init__(self, bytes_per_token: float) -> None:
        self._unknown = bytes_per_token, 1.0
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def learn(self, kind: str, length: int, told: int) -> None:
        """So many bytes had so many tokens."""
        if not 0 < length <= told * self._unknown[0] * IMPLAUSIBLE:
            return
        size, tokens = self._known.pop(kind, (0.0, 0.0))
        fading = min(1.0, _REMEMBERED_BYTES / (size + length))
        self._known[kind] = (size * fading + length, tokens * fading + told)
        if len(self._known) > KINDS_KNOWN:
            self._known.popitem(last=False)

    def estimate(self, kind: str, length: int) -> int:
        """Tokens of so many bytes."""
        size, tokens = self._known.get(kind, self._unknown)
        return round(length * tokens / size)


class TokenEstimators:
    """What was learnt: the prompts of each model by the bytes of the request, the events of its streams by their bytes."""

    def __init__(self) -> None:
        self.prompts = TokenEstimator(BYTES_PER_TOKEN)
        self.events = TokenEstimator(BYTES_PER_EVENT)


def tokens_used(entry: Any, target: str, known: TokenEstimators) -> TokenUsage | None:
    """What the request of a report has used of `target`; None where no engine has worked for it."""
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
        # What the waker answered is in the count of bytes.
        return TokenUsage(prompt, known.events.estimate(stream, entry.response.response_body_bytes), reported=False)
    return TokenUsage(prompt, _tokens_that_came(entry, answers), reported=False)


def _tokens_that_came(entry: Any, answers: int) -> int:
    """How many chunks of a stream came from the engine.

    Exact if all have less than 256 bytes, but for the first of each answer, or if all have more; else within a sixth.
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
    """Bytes that came from the engine and are neither head nor body."""
    response = entry.response
    counted = response.upstream_header_bytes_received + response.response_body_bytes + _UNCOUNTED_HEAD
    return int(entry.common_properties.upstream_wire_bytes_received - counted)


def _reached_engine(common: Any) -> bool:
    """Whether an engine was sent the request: the waker, which holds it until there is one, has no address of its own."""
    address = common.upstream_remote_address
    return bool(common.upstream_wire_bytes_sent) and address.WhichOneof("address") in ("pipe", "socket_address")


def _numbers(metadata: Any, namespace: str) -> dict[str, int]:
    """The numbers under a namespace that can be counts."""
    if namespace not in metadata.filter_metadata:
        return {}
    fields = metadata.filter_metadata[namespace].fields
    return {
        name: int(value.number_value)
        for name, value in fields.items()
        if value.HasField("number_value") and 0 <= value.number_value < MOST_TOKENS
    }
