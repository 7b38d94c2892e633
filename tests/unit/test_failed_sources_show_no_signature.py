"""What a failed source says reaches users and the log without signatures, in bounded length, and can be stored."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import client_exceptions
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.gguf import GgufError
from llamesh.kit.objects import StoreError
from services.download.sources import (
    AddressRules,
    HttpsSource,
    SourceChangedError,
    SourceError,
    SourceRefusedError,
    SourceTruncatedError,
)
from services.download.sources.http_client import HttpClient
from services.download.sources.shown_texts import MAX_PHRASE, MAX_TEXT, cause
from services.download.verification import transfer_error
from tests.unit.test_https_source import raw_serving

SECRET = "0123456789abcdef"
QUERY = f"?X-Amz-Signature={SECRET}&a='b(c)"
SIGNED = f"https://store.example/a.gguf{QUERY}"
KEY = cast("Any", SimpleNamespace(host="store.example", port=443, ssl=True, is_ssl=True))
REQUEST = aiohttp.RequestInfo(URL(SIGNED), "GET", CIMultiDictProxy(CIMultiDict()), URL(SIGNED))
LEAKY = OSError(5, f"cannot read {SIGNED}")


def example(kind: type[Exception]) -> Exception:
    """An error of a class of the HTTP library, with a signed URL wherever the class takes a text."""
    if issubclass(kind, aiohttp.ClientResponseError):
        return kind(REQUEST, (), status=400, message=f"Got more than 8190 bytes when reading: b'Location: {SIGNED}'")
    if issubclass(kind, aiohttp.ClientConnectorCertificateError):
        return kind(KEY, ValueError(SIGNED))
    if issubclass(kind, client_exceptions.UnixClientConnectorError):
        return kind(SIGNED, KEY, LEAKY)
    if issubclass(kind, aiohttp.ClientConnectorError):
        return kind(KEY, LEAKY)
    if issubclass(kind, aiohttp.ServerFingerprintMismatch):
        return kind(b"a", SIGNED.encode(), SIGNED, 443)
    return kind(SIGNED)


KINDS = [kind for _, kind in inspect.getmembers(client_exceptions, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_of_the_http_library_shows_a_signature(kind: type[Exception]) -> None:
    words = cause(example(kind))
    assert SECRET not in words
    assert 0 < len(words) < 300


def test_every_class_is_tried() -> None:
    assert {aiohttp.ClientResponseError, aiohttp.InvalidURL, aiohttp.ServerDisconnectedError} < set(KINDS)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 80)"), "Connection refused"),
        (aiohttp.ClientConnectorError(KEY, OSError(111, "10.0.0.1")), "Connection refused"),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "[SSL: X] bad certificate")), "[SSL: X] bad certificate"),
        (aiohttp.ServerDisconnectedError(), "the server disconnected"),
        (
            aiohttp.ClientResponseError(REQUEST, (), message="Bad status line:\n\n  b'SSH-2.0'"),
            "the answer is not valid HTTP (Bad status line)",
        ),
        (ValueError(SIGNED), "ValueError"),
    ],
)
def test_the_cause_is_named(error: Exception, words: str) -> None:
    assert cause(error) == words


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: " + SIGNED.encode() + b"a" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 404 " + b"N" * 5000 + b" " + SIGNED.encode() + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 \xff" + SIGNED.encode() + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 10_000 + b"\r\n",
        b"",
    ],
)
async def test_a_hostile_answer_shows_no_signature(answer: bytes) -> None:
    async with raw_serving(answer) as host:
        source = HttpsSource(AddressRules(), http_hosts=[host])
        with pytest.raises(SourceError) as caught:
            async with source.open(f"http://{host}/a.gguf{QUERY}") as found:
                _ = [chunk async for chunk in found.chunks]
    error = transfer_error(caught.value, f"http://{host}/a.gguf")
    assert error.reason != Reason.ERROR_REASON_INTERNAL
    assert SECRET not in f"{error.message} {error.metadata}"
    assert len(error.message.encode()) <= MAX_TEXT


@pytest.mark.parametrize(
    ("phrase", "shown"),
    [
        (b"Not Found", " Not Found"),
        (b"", ""),
        (b"\x1b[31mRED\x1b]0;x\x07 " + "\u202e".encode(), " ?[31mRED?]0;x? ?"),
        (b"A" * 5000, " " + "A" * MAX_PHRASE),
    ],
    ids=["usual", "none", "steers a terminal", "long"],
)
async def test_the_words_behind_a_status_are_short_and_printable(phrase: bytes, shown: str) -> None:
    """They are stored with the transfer and printed by commands, and the server has chosen them."""
    async with raw_serving(b"HTTP/1.1 404 " + phrase + b"\r\nContent-Length: 0\r\n\r\n") as host:
        source = HttpsSource(AddressRules(), http_hosts=[host])
        with pytest.raises(SourceError) as caught:
            async with source.open(f"http://{host}/a.gguf"):
                pass
    assert transfer_error(caught.value, "").message == f"http://{host}/a.gguf answers 404{shown}"


@pytest.mark.parametrize(
    "error",
    [
        SourceError("a\x1b[2J\u202eb"),
        SourceRefusedError("a\x1b[2J\u202eb", rule="x"),
        GgufError("a\x1b[2J\u202eb", offset=0, what="header"),
        MeshError(Reason.ERROR_REASON_MODEL_INVALID, "a\x1b[2J\u202eb"),
        StoreError("a\x1b[2J\u202eb"),
    ],
)
def test_no_error_of_a_transfer_steers_a_terminal(error: Exception) -> None:
    found = transfer_error(error, "")
    assert "a?[2J?b" in found.message
    texts = f"{found.message}{found.metadata}{[violation.description for violation in found.fields]}"
    assert all(steering not in texts for steering in ("\x1b", "\u202e", r"\x1b", r"\u202e"))


LONG = f"cannot read \ud800 {SIGNED} {'a' * 1_000_000}"


@pytest.mark.parametrize(
    "error",
    [
        SourceError(LONG),
        SourceRefusedError(LONG, rule="x"),
        SourceChangedError(LONG, opened="", found=""),
        SourceTruncatedError(LONG, expected=1, actual=0),
        MeshError(Reason.ERROR_REASON_CONTENT_MISMATCH, LONG),
    ],
)
def test_the_error_of_a_transfer_is_bounded_and_has_no_query(error: Exception) -> None:
    found = transfer_error(error, "")
    texts = [found.message, *(violation.description for violation in found.fields)]
    for text in texts:
        assert text.startswith("cannot read ? https://store.example/a.gguf ")
        assert len(text.encode()) <= MAX_TEXT


async def test_an_etag_that_cannot_be_stored_is_dropped_and_so_are_ranges() -> None:
    for etag in (b'"\xff"', b'"' + b"e" * 2000 + b'"'):
        answer = b"HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: 1\r\nETag: " + etag + b"\r\n\r\nx"
        async with (
            raw_serving(answer) as host,
            HttpsSource(AddressRules(), http_hosts=[host]).open(f"http://{host}/a.gguf") as found,
        ):
            assert (found.etag, found.read) == ("", None)


async def test_interim_answers_do_not_extend_the_time_to_the_final_one() -> None:
    async def hinting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        gone = asyncio.ensure_future(reader.read())
        while not gone.done():
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await asyncio.wait([gone], timeout=0.02)
        writer.close()

    async with await asyncio.start_server(hinting, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = HttpClient(AddressRules(), http_hosts=[host], answer_seconds=0.3)
        with pytest.raises(SourceError, match="does not answer in time") as caught:
            async with client.get(client.parsed(f"http://{host}/a.gguf{QUERY}")):
                pass
    assert caught.value.transient


async def test_a_document_that_is_nested_too_deeply_is_invalid() -> None:
    body = b"[" * 200_000
    async with raw_serving(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as host:
        client = HttpClient(AddressRules(), http_hosts=[host])
        with pytest.raises(SourceError, match="the Hub answers with invalid JSON"):
            await client.document(client.parsed(f"http://{host}/"), "the Hub")


@pytest.mark.parametrize("host", [f"{'a' * 64}.example", "a..example"])
async def test_a_host_that_dns_cannot_express_is_not_found(host: str) -> None:
    with pytest.raises(SourceError, match="cannot be found"):
        await AddressRules().addresses(host, 443)


async def test_a_machine_without_a_name_server_is_told_apart_from_an_unknown_host() -> None:
    async def no_network(_: str, __: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def unknown(_: str, __: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(SourceError, match="may have no network"):
        await AddressRules(resolve=no_network).addresses("huggingface.co", 443)
    with pytest.raises(SourceError, match=r"^the host huggingface.co cannot be found$"):
        await AddressRules(resolve=unknown).addresses("huggingface.co", 443)
