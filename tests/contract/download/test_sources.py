"""Sources that fail, are busy or may not be used: the download says why, and nothing is left."""

from __future__ import annotations

import asyncio

import pytest

from llamesh.v1 import download_pb2 as pb
from tests.contract.conftest import AsCaller
from tests.contract.download.conftest import TINY, Service
from tests.contract.model_source import ModelServer
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused
from tests.unit.gguf_bytes import STRING, File, pair


async def test_a_wrong_file_is_given_up_at_its_first_bytes(sqlite_service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = b"PK\x03\x04" + bytes(5 << 20)
    web.hold_after["a.gguf"] = 1 << 20
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert download.error.reason == "MODEL_INVALID"
    assert not web.go_on.is_set()


async def test_a_source_that_is_not_there_is_said_so_and_can_be_tried_again(service: Service, web: ModelServer) -> None:
    download = await service.fetched("m1", web.url("a.gguf"))
    assert (download.error.reason, download.state) == ("SOURCE_REFUSED", pb.DOWNLOAD_STATE_FAILED)
    assert "404" in download.error.message
    web.files["a.gguf"] = TINY
    again = await service.fetched("m1")
    assert (again.state, again.error.reason) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")


@pytest.mark.parametrize("failures", [[(503, "")], [(429, "0"), (502, ""), (504, "0")], [(0, "")], [(0, "")] * 5])
async def test_a_source_that_is_busy_or_breaks_off_is_asked_again(
    service: Service, web: ModelServer, failures: list[tuple[int, str]]
) -> None:
    web.files["a.gguf"] = TINY
    web.busy["a.gguf"] = list(failures)
    download = await service.fetched("m1", web.url("a.gguf"))
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert len(web.asked) == len(failures) + 1


async def test_a_source_that_stays_busy_is_given_up(service: Service, web: ModelServer) -> None:
    web.busy["a.gguf"] = [(503, "")] * 100
    download = await service.fetched("m1", web.url("a.gguf"))
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "SOURCE_UNAVAILABLE")
    assert "503" in download.error.message
    assert "given up after 6 tries" in download.error.message
    assert len(web.asked) == 6
    # Asked for anew it begins to count anew.
    web.files["a.gguf"], web.busy["a.gguf"] = TINY, [(503, "")] * 5
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_a_source_says_when_it_is_asked_again_and_the_download_shows_it(
    service: Service, web: ModelServer
) -> None:
    web.files["a.gguf"], web.files["b.gguf"] = TINY, TINY
    web.busy["a.gguf"] = [(503, "300")]
    await service.start("m1", web.url("a.gguf"))
    async with asyncio.timeout(PATIENCE):
        while not (waiting := await service.get("m1")).error.reason:
            await asyncio.sleep(0.01)
    assert (waiting.state, waiting.error.reason) == (pb.DOWNLOAD_STATE_QUEUED, "SOURCE_UNAVAILABLE")
    assert "tries again in 300 s, 1 of 6 tries failed" in waiting.error.message
    # It holds up no other, and can be cancelled.
    assert (await service.fetched("m2", web.url("b.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert web.asked == ["a.gguf", "b.gguf"]
    assert (await service.cancel("m1")).state == pb.DOWNLOAD_STATE_CANCELLED


async def test_a_source_that_wants_us_back_much_later_is_given_up(sqlite_service: Service, web: ModelServer) -> None:
    web.busy["a.gguf"] = [(503, "3600")]
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert (download.state, len(web.asked)) == (pb.DOWNLOAD_STATE_FAILED, 1)


async def test_a_name_that_is_not_utf_8_is_shown_with_replacements(sqlite_service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = File().replacing("general.name", pair("general.name", STRING, b"Caf\xe9 \xff 7B"))
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert download.state == pb.DOWNLOAD_STATE_SUCCEEDED, download.error
    assert "Caf\ufffd \ufffd 7B" in str((await sqlite_service.model("m1")).ListFields())


async def test_a_file_that_does_not_fit_is_refused_with_the_numbers(sqlite_service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = TINY
    web.promised["a.gguf"] = (2 << 40) - 1
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert download.error.reason == "STORE_UNAVAILABLE"
    assert f"needs {(2 << 40) - 1} bytes" in download.error.message


REFUSED = [
    ("http://models.example/a.gguf", "scheme"),
    ("ftp://models.example/a.gguf", "form"),
    ("a.gguf", "form"),
    ("https://user:hunter2@models.example/a.gguf", "credentials"),
    ("/etc/passwd", "folder"),
    ("file:///proc/self/environ", "folder"),
]


@pytest.mark.parametrize(("source", "rule"), REFUSED)
async def test_sources_that_may_not_be_used_are_refused_at_once(
    sqlite_service: Service, source: str, rule: str
) -> None:
    with refused("SOURCE_REFUSED") as refusal:
        await sqlite_service.start("m1", source)
    assert refusal.metadata["rule"] == rule
    assert "hunter2" not in str(refusal)
    with refused("DOWNLOAD_NOT_FOUND"):
        await sqlite_service.get("m1")


async def test_a_private_address_is_refused_when_it_is_looked_up(sqlite_service: Service) -> None:
    download = await sqlite_service.fetched("m1", "https://localhost/a.gguf")
    assert download.error.reason == "SOURCE_REFUSED"


async def test_without_a_source_the_missing_quant_service_is_named(sqlite_service: Service) -> None:
    with refused("QUANT_NOT_CONFIGURED"):
        await sqlite_service.start("m1")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"model_uuid": ""}, "model_uuid"),
        ({"model_uuid": "../x"}, "model_uuid"),
        ({"model_uuid": "a" * 129}, "model_uuid"),
        ({"model_uuid": "m1", "sha256": "abc"}, "sha256"),
        ({"model_uuid": "m1", "name": "a b"}, "name"),
        ({"model_uuid": "m1", "source": "https://" + "a" * 2048}, "source"),
    ],
)
async def test_malformed_requests_name_the_field(sqlite_service: Service, fields: dict[str, str], wrong: str) -> None:
    with refused("INVALID_FIELD") as refusal:
        await sqlite_service.start(**fields)
    assert refusal.fields == [wrong]


async def test_a_token_without_the_scope_is_refused(sqlite_service: Service, as_caller: AsCaller) -> None:
    sqlite_service.caller = as_caller("eve", "infer:*")
    with refused("SCOPE_MISSING"):
        await sqlite_service.start("m1", "/x")
    sqlite_service.caller = []
    with refused("UNAUTHENTICATED"):
        await sqlite_service.get("m1")
