"""Bytes from the web arrive whole or as an error, over TLS, and redirects reach nothing that was not judged."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.download.sources import (
    AddressRules,
    HttpsSource,
    SourceError,
    SourceRefusedError,
    SourceTruncatedError,
)
from tests.unit.loopback import Handler, serving

BODY = bytes(range(256)) * 4096


async def model(request: web.Request) -> web.Response:
    return web.Response(body=BODY, headers={"ETag": '"v1"'})


@asynccontextmanager
async def raw_serving(answer: bytes, *, linger: float = 0) -> AsyncIterator[str]:
    """A server that answers every connection with these bytes and closes it: for answers no library would give."""

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(linger)
        writer.close()

    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def source(*http_hosts: str, **options: object) -> HttpsSource:
    return HttpsSource(AddressRules(), http_hosts=http_hosts, **options)  # type: ignore[arg-type]


async def read(opened: HttpsSource, url: str) -> bytes:
    async with opened.open(url) as found:
        return b"".join([chunk async for chunk in found.chunks])


async def test_an_open_source_has_the_bytes_their_size_name_and_etag() -> None:
    async with (
        serving({"/dir/a model.gguf": model}) as host,
        source(host).open(f"http://{host}/dir/a%20model.gguf?sig=x") as found,
    ):
        assert (found.size, found.name, found.etag) == (len(BODY), "a model.gguf", '"v1"')
        assert b"".join([chunk async for chunk in found.chunks]) == BODY


async def test_no_credentials_and_no_compression_are_sent() -> None:
    seen: dict[str, str] = {}

    async def noting(request: web.Request) -> web.Response:
        seen.update(request.headers)
        return web.Response(body=b"x")

    async with serving({"/m": noting}) as host:
        await read(source(host), f"http://{host}/m")
    assert seen["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie", "Referer"} & seen.keys()


async def test_a_body_without_length_is_read_to_its_end() -> None:
    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(BODY), 65_536):
            await response.write(BODY[start : start + 65_536])
        return response

    async with serving({"/m": chunked}) as host:
        assert await read(source(host), f"http://{host}/m") == BODY


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + bytes(99),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + bytes(16) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + bytes(5),
    ],
)
async def test_a_truncated_body_is_an_error(answer: bytes) -> None:
    async with raw_serving(answer) as host:
        with pytest.raises(SourceTruncatedError, match="ended after"):
            await read(source(host), f"http://{host}/m")


@pytest.mark.parametrize("status", [204, 206, 304, 401, 403, 404, 416, 429, 500, 503])
async def test_any_status_but_200_is_an_error_that_names_it(status: int) -> None:
    async def refusing(request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with serving({"/m": refusing}) as host:
        with pytest.raises(SourceError, match=str(status)) as caught:
            await read(source(host), f"http://{host}/m?sig=secret")
    assert caught.value.status == status
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"])
async def test_an_answer_that_is_not_http_is_an_error(answer: bytes) -> None:
    async with raw_serving(answer) as host:
        with pytest.raises(SourceError, match="cannot be reached"):
            await read(source(host), f"http://{host}/m")


async def test_a_port_without_a_listener_is_an_error() -> None:
    async with raw_serving(b"") as host:
        pass
    named = host.replace("127.0.0.1", "localhost")
    with pytest.raises(SourceError, match="cannot be reached: Connection refused") as caught:
        await read(source(named), f"http://{named}/m")
    # What a name resolves to is not said here either.
    assert "127.0.0.1" not in str(caught.value)


async def test_a_server_that_falls_silent_is_given_up() -> None:
    async with raw_serving(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + bytes(10), linger=0.5) as host:
        with pytest.raises(SourceError, match="sent nothing more after 10 bytes"):
            await read(source(host, silence_seconds=0.1), f"http://{host}/m")


async def test_compressed_bytes_are_refused() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"
    async with raw_serving(answer) as host:
        with pytest.raises(SourceError, match="compressed"):
            await read(source(host), f"http://{host}/m")


async def test_more_bytes_than_allowed_are_refused_announced_or_not() -> None:
    async with serving({"/m": model}) as host:
        with pytest.raises(SourceRefusedError, match="more than the allowed 1000"):
            await read(source(host, max_bytes=1000), f"http://{host}/m")
    unannounced = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(2000)
    async with raw_serving(unannounced) as host:
        with pytest.raises(SourceRefusedError, match="more than the allowed 1000"):
            await read(source(host, max_bytes=1000), f"http://{host}/m")


def redirecting(to: str) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": to})

    return answer


async def test_a_redirect_on_the_same_host_is_followed_and_the_name_stays() -> None:
    async with (
        serving({"/a.gguf": redirecting("/b"), "/b": model}) as host,
        source(host).open(f"http://{host}/a.gguf") as found,
    ):
        assert found.name == "a.gguf"
        assert b"".join([chunk async for chunk in found.chunks]) == BODY


SIGNED = (
    "/x-y%2fz%7E/a%2Bb+c%20d.gguf?X-Sig=a%2Fb%2bc+d%3D%3d&Policy=~%7E-%2D_&q=%E4%BD%A0&empty=&X=$a'(b)*,;:@/?!",
    "/a.gguf?sig=%41%62&sig=%5B%5d",
    "/b%25c?d=%25e%",
)


@pytest.mark.parametrize("target", SIGNED)
@pytest.mark.parametrize("whole", [True, False])
async def test_signed_urls_are_followed_byte_for_byte(target: str, whole: bool) -> None:
    asked = []

    async def storage(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.Response(body=BODY)

    async def first(request: web.Request) -> web.Response:
        location = f"http://{request.host.upper()}{target}#x" if whole else target
        return web.Response(status=302, headers={"Location": location})

    async with serving({"/start": first, "/{path:.*}": storage}) as host:
        assert await read(source(host), f"http://{host}/start") == BODY
        assert await read(source(host), f"http://{host}{target}") == BODY
    assert asked == [target, target]


async def test_a_location_that_is_not_escaped_is_escaped() -> None:
    async def first(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/ein Modell.gguf?a=b c"})

    async def storage(request: web.Request) -> web.Response:
        assert request.raw_path == "/ein%20Modell.gguf?a=b+c"
        return web.Response(body=BODY)

    async with serving({"/start": first, "/{path:.*}": storage}) as host:
        assert await read(source(host), f"http://{host}/start") == BODY


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("99999999999999", 999999999),
        ("\u0667", None),
        ("Jan 99999999999999 31 12:00:00", None),
        ("Wed, 01 Jan 2020 00:00:00 +99999999999999", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
    ],
)
@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_busy_server_says_when_to_come_back(status: int, header: str, seconds: float | None) -> None:
    answer = f"HTTP/1.1 {status} Busy\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n".encode()
    async with raw_serving(answer) as host:
        with pytest.raises(SourceError) as caught:
            await read(source(host), f"http://{host}/m")
    assert (caught.value.transient, caught.value.retry_after) == (True, seconds)


async def test_a_busy_server_may_name_a_date() -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    date = at.strftime("%a, %d %b %Y %H:%M:%S GMT")
    answer = f"HTTP/1.1 503 Busy\r\nRetry-After: {date}\r\nContent-Length: 0\r\n\r\n".encode()
    async with raw_serving(answer) as host:
        with pytest.raises(SourceError) as caught:
            await read(source(host), f"http://{host}/m")
    assert caught.value.retry_after is not None
    assert 60 < caught.value.retry_after <= 90


@pytest.mark.parametrize(
    ("answer", "transient"),
    [
        (b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + bytes(10), True),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", False),
        (b"SSH-2.0-OpenSSH_9\r\n", False),
    ],
)
async def test_a_truncated_answer_is_transient_and_a_wrong_one_is_not(answer: bytes, transient: bool) -> None:
    async with raw_serving(answer) as host:
        with pytest.raises(SourceError) as caught:
            await read(source(host), f"http://{host}/m")
    assert caught.value.transient is transient


async def test_a_redirect_loop_ends() -> None:
    async with serving({"/m": redirecting("/m")}) as host:
        with pytest.raises(SourceRefusedError, match="redirects more than 5 times"):
            await read(source(host), f"http://{host}/m")


@pytest.mark.parametrize(
    ("location", "rule"),
    [
        ("https://127.0.0.1:1/", "address"),
        ("https://169.254.169.254/latest/meta-data", "address"),
        ("https://[::ffff:10.0.0.1]/", "address"),
        ("https://2130706433/", "address"),
        ("http://models.example/", "scheme"),
        ("//localhost:9/", "scheme"),
        ("file:///etc/passwd", "host"),
        ("https://user:password@models.example/", "credentials"),
    ],
)
async def test_a_redirect_elsewhere_is_judged_like_the_first_url(location: str, rule: str) -> None:
    async with serving({"/m": redirecting(location)}) as host:
        with pytest.raises(SourceRefusedError) as caught:
            await read(source(host), f"http://{host}/m")
    assert caught.value.rule == rule


async def test_a_redirect_does_not_reach_a_private_host_that_only_callers_may_name() -> None:
    async with serving({"/m": model}) as inner, serving({"/m": redirecting(f"http://{inner}/m")}) as outer:
        with pytest.raises(SourceRefusedError) as caught:
            await read(source(inner, outer), f"http://{outer}/m")
        assert caught.value.rule == "address"
        assert await read(source(inner, outer), f"http://{inner}/m") == BODY


async def test_a_redirect_does_not_reach_another_port_of_a_private_host() -> None:
    rules = AddressRules(private_hosts=frozenset({"127.0.0.1"}))
    async with serving({"/m": redirecting("https://127.0.0.1:1/m")}) as host:
        with pytest.raises(SourceRefusedError) as caught:
            await read(HttpsSource(rules, http_hosts=[host]), f"http://{host}/m")
    assert caught.value.rule == "address"


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://models.example/m", "scheme"),
        ("http://127.0.0.1/m", "scheme"),
        ("HTTP://127.0.0.1/m", "scheme"),
        ("https://", "host"),
        ("https:///m", "host"),
        ("https://[::1", "url"),
        ("https://models.example:99999/", "url"),
        ("https://user@models.example/", "credentials"),
        ("https://user:word@models.example/", "credentials"),
    ],
)
def test_urls_that_are_refused_unseen(url: str, rule: str) -> None:
    with pytest.raises(SourceRefusedError) as caught:
        source().check(url)
    assert caught.value.rule == rule


def test_signatures_are_not_shown() -> None:
    checked = source().check("https://models.example/a.gguf?sig=secret#x")
    assert (checked.shown, checked.name) == ("https://models.example/a.gguf", "a.gguf")
    assert checked.address == "https://models.example/a.gguf?sig=secret#x"


async def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    """A name that would answer differently the second time is asked only once."""
    asked: list[str] = []
    async with serving({"/m": model}) as host:
        port = host.rpartition(":")[2]

        async def once(name: str, _port: int) -> Sequence[str]:
            asked.append(name)
            return ["127.0.0.1"]

        rebinding = HttpsSource(AddressRules(resolve=once), http_hosts=[f"models.example:{port}"])
        assert await read(rebinding, f"http://models.example:{port}/m") == BODY
    assert asked == ["models.example"]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


async def test_tls_is_verified(certificate: Path) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    rules = AddressRules(private_hosts=frozenset({"127.0.0.1"}))
    async with serving({"/m": model}, server) as host:
        assert await read(HttpsSource(rules, tls=trusting), f"https://{host}/m") == BODY
        with pytest.raises(SourceError, match=r"certificate|CERTIFICATE"):
            await read(HttpsSource(rules), f"https://{host}/m")
        with pytest.raises(SourceRefusedError, match="not one of the public internet"):
            await read(HttpsSource(AddressRules(), tls=trusting), f"https://{host}/m")
