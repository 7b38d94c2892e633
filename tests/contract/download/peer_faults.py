"""The faults of a source: a FAKE peer that is slow, cuts connections, gives wrong lengths, or sends an object that is not the model.

`PEER_FAULTS` has each fault with the end of a transfer in one stream and in parts; None if such a transfer cannot meet the fault. Faults
begin after the header of the file, where gigabytes would be on their way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from aiohttp import web

from llamesh.v1 import download_pb2 as pb
from tests.contract.download.journal import HEADER
from tests.contract.ranged_source import Answer, Fault, large_model

PART = 5 << 20
"""The smallest part of S3."""
DATA = large_model(2 * PART + (1 << 20), seed=7)
OTHER = large_model(2 * PART + (1 << 20), seed=8)


@dataclass(frozen=True)
class End:
    """How a transfer ends: its state, the reason of its error and words of the message."""

    state: int
    reason: str = ""
    words: str = ""


SUCCESS = End(pb.DOWNLOAD_STATE_SUCCEEDED)


def failed(reason: str, words: str) -> End:
    return End(pb.DOWNLOAD_STATE_FAILED, reason, words)


@dataclass(frozen=True)
class PeerFault:
    """A fault, made anew for each transfer, and the ends of both kinds of transfer."""

    make: Callable[[], Fault]
    stream: End | None
    parts: End | None


def late(answer: Answer) -> bool:
    """Whether an answer has more than the header of the file."""
    return answer.length > HEADER


def beginning(answer: Answer) -> int:
    """Bytes of an answer that come before the fault: half of a stream, nothing of a part."""
    return 0 if answer.ranged else len(answer.body) // 2


def shorter(answer: Answer) -> None:
    if late(answer):
        answer.body = answer.body[: beginning(answer)]


def silent(request: web.Request, answer: Answer) -> None:
    shorter(answer)
    answer.silent = late(answer)


def cut(request: web.Request, answer: Answer) -> None:
    shorter(answer)


def cut_once() -> Fault:
    numbers = count()

    def fault(request: web.Request, answer: Answer) -> None:
        if late(answer) and next(numbers) % 2 == 0:
            shorter(answer)

    return fault


def announced(difference: int) -> Fault:
    """The object has that many bytes more than its peer says of it."""

    def fault(request: web.Request, answer: Answer) -> None:
        if not answer.ranged:
            answer.length -= difference
            answer.body = answer.body[: answer.length]
        else:
            where, _, size = answer.headers["Content-Range"].partition("/")
            answer.headers["Content-Range"] = f"{where}/{int(size) - max(difference, 0)}"

    return fault


def shifted(request: web.Request, answer: Answer) -> None:
    if answer.ranged and late(answer):
        answer.headers["Content-Range"] = "bytes 0-9/" + answer.headers["Content-Range"].partition("/")[2]


def longer(request: web.Request, answer: Answer) -> None:
    if answer.ranged and late(answer):
        answer.chunked, answer.body = True, answer.body + bytes(PART)


def without_ranges(request: web.Request, answer: Answer) -> None:
    if answer.ranged and late(answer):
        answer.status = 200


def replaced() -> Fault:
    """The object is replaced whenever its header has been read."""
    versions = count()

    def fault(request: web.Request, answer: Answer) -> None:
        if not answer.ranged:
            answer.headers["ETag"] = f'"r{next(versions)}"'
            spoilt(OTHER)(request, answer)
        elif late(answer):
            answer.status, answer.body, answer.length = 412, b"", 0

    return fault


def spoilt(data: bytes) -> Fault:
    """The second half of what comes after the header is of another object, and nothing says so."""

    def fault(request: web.Request, answer: Answer) -> None:
        if late(answer):
            half = len(answer.body) // 2
            answer.body = answer.body[:half] + data[half : len(answer.body)]

    return fault


def other(data: bytes) -> Fault:
    """There is another file at the address."""

    def fault(request: web.Request, answer: Answer) -> None:
        wanted = request.http_range if answer.ranged else slice(None)
        answer.body = data[wanted]
        answer.length = len(answer.body)

    return fault


def expired(request: web.Request, answer: Answer) -> None:
    if late(answer):
        answer.status, answer.body, answer.length = 403, b"", 0


def expiring() -> Fault:
    """The address leads to another one, which is good for one request."""
    used: set[str] = set()
    numbers = count()

    def fault(request: web.Request, answer: Answer) -> None:
        if request.path.startswith("/signed/"):
            if request.path in used:
                expired(request, answer)
            used.add(request.path)
        else:
            redirect(answer, f"/signed/{next(numbers)}")

    return fault


def private(request: web.Request, answer: Answer) -> None:
    if late(answer):
        redirect(answer, "https://169.254.169.254/latest")


def redirect(answer: Answer, location: str) -> None:
    answer.status, answer.body, answer.length, answer.headers = 302, b"", 0, {"Location": location}


def always(fault: Fault) -> Callable[[], Fault]:
    return lambda: fault


HTML = b"<html>" + DATA[6:]
PEER_FAULTS = {
    "falls silent": PeerFault(
        always(silent),
        failed("SOURCE_UNAVAILABLE", "sent nothing more after"),
        failed("SOURCE_UNAVAILABLE", "sent nothing more after 0 bytes"),
    ),
    "cuts every connection": PeerFault(
        always(cut),
        failed("CONTENT_MISMATCH", f"of {len(DATA)} bytes (given up after 6 tries)"),
        failed("CONTENT_MISMATCH", f"ended after 0 of {PART} bytes"),
    ),
    "cuts every other connection": PeerFault(cut_once, SUCCESS, SUCCESS),
    "announces more bytes than it has": PeerFault(
        always(announced(-1000)),
        failed("MODEL_INVALID", "1000 bytes follow the last tensor"),
        failed("CONTENT_MISMATCH", "changed while it was read"),
    ),
    "announces fewer bytes than it has": PeerFault(
        always(announced(1000)),
        failed("MODEL_INVALID", "the file is truncated, at least"),
        failed("MODEL_INVALID", "the file is truncated, at least"),
    ),
    "sends another range": PeerFault(
        always(shifted), None, failed("SOURCE_UNAVAILABLE", "were requested, the answer has 'bytes 0-9/")
    ),
    "sends more than the range": PeerFault(
        always(longer), None, failed("SOURCE_UNAVAILABLE", f"sends more than {PART} bytes")
    ),
    "has no ranges after all": PeerFault(always(without_ranges), None, failed("SOURCE_UNAVAILABLE", "answers 200")),
    "replaces the object midway": PeerFault(
        replaced,
        failed("CONTENT_MISMATCH", "the file has SHA-256"),
        failed("CONTENT_MISMATCH", "changed while it was read"),
    ),
    "sends a corrupt object": PeerFault(
        always(spoilt(OTHER)),
        failed("CONTENT_MISMATCH", "the file has SHA-256"),
        failed("CONTENT_MISMATCH", "the file has SHA-256"),
    ),
    "sends the object of another model": PeerFault(
        always(other(OTHER)),
        failed("CONTENT_MISMATCH", "the file has SHA-256"),
        failed("CONTENT_MISMATCH", "the file has SHA-256"),
    ),
    "sends a page": PeerFault(
        always(other(HTML)), failed("MODEL_INVALID", "not a GGUF file"), failed("MODEL_INVALID", "not a GGUF file")
    ),
    "lets its address expire": PeerFault(
        always(expired), failed("SOURCE_REFUSED", "answers 403"), failed("SOURCE_REFUSED", "answers 403")
    ),
    "gives addresses for one request": PeerFault(expiring, SUCCESS, SUCCESS),
    "redirects to a private address": PeerFault(
        always(private), failed("SOURCE_REFUSED", "169.254.169.254"), failed("SOURCE_REFUSED", "169.254.169.254")
    ),
}
"""By what the peer does."""
