"""Parts of objects on the web are of the object that was opened, and a token goes to its own origin only."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from aiohttp import web
from pydantic import SecretStr

from services.download.sources import AddressRules, HttpsSource, SourceChangedError, SourceError, SourceObject
from services.download.sources.http_client import BearerToken, HttpClient
from tests.unit.loopback import serving
from tests.unit.test_https_source import BODY, redirecting, source
from tests.unit.web_objects import answer


async def ranged(request: web.Request) -> web.Response:
    return answer(request, BODY)


async def part(found: SourceObject, offset: int, length: int) -> bytes:
    assert found.read is not None
    return b"".join([chunk async for chunk in found.read(offset, length)])


async def test_parts_are_read_at_the_same_time_and_beside_the_stream() -> None:
    async with serving({"/m": ranged, "/r": redirecting("/m")}) as host, source(host).open(f"http://{host}/r") as found:
        offsets = range(0, len(BODY), 100_000)
        parts = await asyncio.gather(*(part(found, at, min(100_000, len(BODY) - at)) for at in offsets))
        assert b"".join(parts) == BODY
        assert b"".join([chunk async for chunk in found.chunks]) == BODY
        assert await part(found, 5, 0) == b""


async def test_a_part_may_be_left_early() -> None:
    async with serving({"/m": ranged}) as host, source(host).open(f"http://{host}/m") as found:
        assert found.read is not None
        async with aclosing(found.read(0, len(BODY))) as chunks:  # type: ignore[type-var]
            assert BODY.startswith(await anext(chunks))


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"', "Accept-Ranges": "bytes"}, {"ETag": '"1"'}])
async def test_an_object_that_cannot_be_identified_has_no_parts(headers: dict[str, str]) -> None:
    async def plain(request: web.Request) -> web.Response:
        return web.Response(body=BODY, headers=headers)

    async with serving({"/m": plain}) as host, source(host).open(f"http://{host}/m") as found:
        assert found.read is None


PART = {"Content-Range": f"bytes 10-19/{len(BODY)}", "ETag": '"v1"'}


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (412, {}, SourceChangedError),
        (206, {**PART, "ETag": '"v2"'}, SourceChangedError),
        (206, {**PART, "Content-Range": "bytes 10-19/77"}, SourceChangedError),
        (206, {**PART, "Content-Range": f"bytes 0-9/{len(BODY)}"}, SourceError),
        (206, {"ETag": '"v1"'}, SourceError),
        (200, {}, SourceError),
        (416, {}, SourceError),
        (503, {}, SourceError),
    ],
)
async def test_a_part_of_anything_else_is_an_error(
    status: int, headers: dict[str, str], error: type[SourceError]
) -> None:
    async def changing(request: web.Request) -> web.Response:
        if "Range" not in request.headers:
            return answer(request, BODY)
        assert request.headers["If-Match"] == '"v1"'
        return web.Response(status=status, headers=headers, body=BODY[10:20])

    async with serving({"/m": changing}) as host, source(host).open(f"http://{host}/m") as found:
        with pytest.raises(SourceError) as caught:
            await part(found, 10, 10)
    assert type(caught.value) is error or (error is SourceError and not isinstance(caught.value, SourceChangedError))


async def test_a_part_that_is_too_long_or_too_short_is_an_error() -> None:
    async def lying(request: web.Request) -> web.Response:
        return (
            answer(request, BODY)
            if "Range" not in request.headers
            else web.Response(status=206, headers=PART, body=b"x" * 9)
        )

    async with serving({"/m": lying}) as host, source(host).open(f"http://{host}/m") as found:
        with pytest.raises(SourceError, match="ended after 9 of 10 bytes"):
            await part(found, 10, 10)


async def test_an_address_that_has_expired_is_renewed_by_its_redirect() -> None:
    """Each read begins at the first address, so the address that it redirects to may live for one request only."""
    signatures: list[str] = []

    async def signing(request: web.Request) -> web.Response:
        signatures.append(str(len(signatures)))
        return web.Response(status=302, headers={"Location": f"/m?signature={signatures[-1]}"})

    async def signed(request: web.Request) -> web.Response:
        fresh = request.query["signature"] == signatures[-1]
        return answer(request, BODY) if fresh else web.Response(status=403)

    async with serving({"/r": signing, "/m": signed}) as host, source(host).open(f"http://{host}/r") as found:
        assert await part(found, 1, 9) == BODY[1:10]
        assert await part(found, 10, 5) == BODY[10:15]
    assert len(signatures) == 3


async def test_a_token_is_not_sent_along_a_redirect_to_another_origin() -> None:
    seen: dict[str, str] = {}

    def noting(name: str) -> HttpsSource | object:
        async def handler(request: web.Request) -> web.Response:
            seen[name] = request.headers.get("Authorization", "")
            return web.json_response({})

        return handler

    async with serving({"/here": noting("same"), "/there": noting("other")}) as other:
        location = f"http://{other}/there"
        async with serving({"/a": redirecting("/b"), "/b": redirecting(location)}) as first:
            rules = AddressRules(private_hosts=frozenset({"127.0.0.1"}))
            token = BearerToken(SecretStr("secret"), f"http://{first}/x")
            client = HttpClient(rules, redirect_rules=rules, http_hosts=[first, other], token=token)
            await client.document(client.parsed(f"http://{first}/a"), "it")
            assert seen == {"other": ""}
        own = HttpClient(rules, http_hosts=[other], token=BearerToken(SecretStr("secret"), f"http://{other}"))
        await own.document(own.parsed(f"http://{other}/here"), "it")
        assert seen["same"] == "Bearer secret"


@pytest.mark.parametrize(("body", "words"), [(b"{", "invalid JSON"), (b" " * ((8 << 20) + 1), "more than")])
async def test_an_answer_of_an_api_is_bounded_json(body: bytes, words: str) -> None:
    async def answering(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with serving({"/a": answering}) as host:
        client = HttpClient(AddressRules(), http_hosts=[host])
        with pytest.raises(SourceError, match=words):
            await client.document(client.parsed(f"http://{host}/a"), "it")


async def test_only_a_service_of_the_operator_redirects_to_a_private_host_of_the_operator() -> None:
    """A mirror in a company may keep its bytes on another private host. Both are names of loopback here."""

    async def answering(request: web.Request) -> web.Response:
        return web.json_response({"found": True})

    async def nowhere_public(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with serving({"/m": answering}) as store:
        port = store.rpartition(":")[2]
        async with serving({"/a": redirecting(f"http://store.example:{port}/m")}) as mirror:
            mirror = mirror.replace("127.0.0.1", "mirror.example")
            hosts = [mirror, f"store.example:{port}"]
            named = AddressRules(frozenset({"mirror.example", "store.example"}), nowhere_public)
            by_a_caller = HttpClient(named, http_hosts=hosts)
            with pytest.raises(SourceError, match="a redirect does not lead to it"):
                await by_a_caller.document(by_a_caller.parsed(f"http://{mirror}/a"), "it")
            by_the_operator = HttpClient(named, redirect_rules=named, http_hosts=hosts)
            found = await by_the_operator.document(by_the_operator.parsed(f"http://{mirror}/a"), "it")
    assert found == {"found": True}
