"""Models of the Quant service, as the reference deployment fetches them: by their id alone. Quant and its store are stand-ins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import TINY, OpenWith, Service, sha256
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused
from tests.unit.fake_quant import FakeQuant, fake_quant
from tests.unit.fake_s3 import FakeS3, fake_s3

OTHER_DIGEST = json.dumps({"object_key": "tiny/Q4.gguf", "sha256": "0" * 64})


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        server.buckets.add("llm-models")
        server.objects["tiny/Q4.gguf"] = TINY
        yield server


@pytest.fixture
async def quant() -> AsyncIterator[FakeQuant]:
    async with fake_quant() as state:
        facts = {"name": "Tiny-Q4_K_M.gguf", "bucket": "llm-models", "sha256": sha256(TINY)}
        state.add("tiny-q4", "tiny/Q4.gguf", size_bytes=str(len(TINY)), **facts)
        yield state


def settings_of(s3: FakeS3, quant: FakeQuant) -> dict[str, object]:
    return {
        "quant_service_url": quant.url,
        "quant_minio_endpoint": s3.endpoint,
        "quant_minio_access_key": SecretStr("k"),
        "quant_minio_secret_key": SecretStr("s"),
    }


@pytest.fixture
async def quant_service(s3: FakeS3, quant: FakeQuant, one_settings: Settings, open_with: OpenWith) -> Service:
    return await open_with(one_settings, **settings_of(s3, quant))


async def test_an_id_alone_brings_the_model_with_its_name(quant_service: Service) -> None:
    download = await quant_service.fetched("tiny-q4")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert (download.source, download.name) == ("quant:tiny-q4", "Tiny-Q4_K_M.gguf")
    model = await quant_service.model("tiny-q4")
    assert (model.name, model.sha256, model.source) == ("Tiny-Q4_K_M.gguf", sha256(TINY), "quant:tiny-q4")


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        (
            {"klDivergence": 0.06, "fallback_tensors": 180, "more": [1]},
            {"kl_divergence": 0.06, "fallback_tensors": 180},
        ),
        ({"kl_divergence": "NaN"}, {}),
        ({"perplexity": -1}, {}),
        ({"tensors": "many"}, {}),
        ([1, 2], {}),
    ],
)
async def test_a_foreign_service_may_give_figures(
    quant_service: Service, quant: FakeQuant, report: object, wanted: dict[str, float]
) -> None:
    quant.models["tiny-q4"]["report"] = report
    await quant_service.fetched("tiny-q4")
    found = (await quant_service.model("tiny-q4")).quality
    assert {field.name: value for field, value in found.ListFields()} == wanted


async def test_a_model_may_get_another_id_and_name(quant_service: Service) -> None:
    download = await quant_service.fetched("mine", "quant:tiny-q4", name="my-model")
    assert (download.state, download.name) == (pb.DOWNLOAD_STATE_SUCCEEDED, "my-model")


async def test_a_name_that_only_the_source_tells_is_no_alias_of_another_model(quant_service: Service) -> None:
    await quant_service.fetched("mine", "quant:tiny-q4", name="my-model")
    request = pb.ChangeCatalogueModelAliasesRequest(model_uuid="mine", add=["Tiny-Q4_K_M.gguf"])
    await quant_service.catalogue.ChangeCatalogueModelAliases(request)
    download = await quant_service.fetched("tiny-q4")
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_NAME_TAKEN")
    assert download.name == ""


async def test_a_foreign_service_has_a_token_of_its_own(
    s3: FakeS3, quant: FakeQuant, one_settings: Settings, open_with: OpenWith
) -> None:
    quant.token = "eyJ.theirs"
    quant.models["tiny-q4"] = {"modelUuid": "tiny-q4", "objectKey": "tiny/Q4.gguf", "sizeBytes": len(TINY)}
    service = await open_with(one_settings, **settings_of(s3, quant), quant_service_token=SecretStr("eyJ.theirs"))
    assert (await service.fetched("tiny-q4")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    quant.token = "eyJ.new"
    download = await service.fetched("other", "quant:tiny-q4")
    assert "refuses the token in QUANT_SERVICE_TOKEN" in download.error.message
    assert "eyJ" not in str(download)


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        ((401, ""), "SOURCE_REFUSED", "asks for a token: set QUANT_SERVICE_TOKEN"),
        ((500, ""), "SOURCE_UNAVAILABLE", "answers 500"),
        ((200, "<html>"), "SOURCE_UNAVAILABLE", "the Quant service answers with invalid JSON"),
        (
            (200, '{"id": "tiny-q4"}'),
            "SOURCE_UNAVAILABLE",
            "is not a Quant service: its answer has no object_key",
        ),
        ((200, "[1]"), "SOURCE_UNAVAILABLE", "no object_key"),
        ((200, '{"model_uuid": "x", "object_key": "a"}'), "SOURCE_UNAVAILABLE", "about another model"),
        ((200, '{"object_key": "none.gguf"}'), "SOURCE_REFUSED", "llm-models has no object none.gguf"),
        ((200, '{"object_key": "../a"}'), "SOURCE_REFUSED", "names a file"),
        ((200, '{"object_key": "a", "bucket": "UP/../x"}'), "SOURCE_UNAVAILABLE", "is not a valid bucket name"),
        ((200, '{"object_key": "a", "bucket": "gone"}'), "SOURCE_REFUSED", "check QUANT_MINIO_ENDPOINT"),
        ((200, '{"object_key": "tiny/Q4.gguf", "size_bytes": "7"}'), "CONTENT_MISMATCH", "Quant says 7"),
        (
            (
                200,
                '{"object_key": "tiny/Q4.gguf", "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}',
            ),
            "CONTENT_MISMATCH",
            "expected was 000",
        ),
        ((302, "http://127.0.0.1:1/models/x"), "SOURCE_REFUSED", "use https"),
        ((302, "https://169.254.169.254/"), "SOURCE_REFUSED", "LLAMESH_SOURCE_HOSTS"),
    ],
)
async def test_each_fault_has_a_reason_and_leaves_nothing(
    quant: FakeQuant, quant_service: Service, answer: tuple[int, str], reason: str, words: str
) -> None:
    quant.answers = [answer] * 10
    download = await quant_service.fetched("m1", "quant:tiny-q4")
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, reason)
    assert words in download.error.message
    assert quant_service.stored == []
    with refused("MODEL_NOT_FOUND"):
        await quant_service.model("m1")


async def test_a_model_that_quant_has_not_gets_the_nearest(quant_service: Service) -> None:
    download = await quant_service.fetched("tiny-q5")
    assert "has no model tiny-q5: did you mean quant:tiny-q4?" in download.error.message


async def test_a_busy_service_is_asked_again(quant: FakeQuant, quant_service: Service) -> None:
    quant.answers = [(503, "")] * 2
    assert (await quant_service.fetched("tiny-q4")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert len(quant.asked) == 3


async def test_a_service_that_is_away_is_named_by_the_failure(
    s3: FakeS3, quant: FakeQuant, one_settings: Settings, open_with: OpenWith, unused_tcp_port: int
) -> None:
    away = {"quant_service_url": f"http://localhost:{unused_tcp_port}"}
    service = await open_with(one_settings, **settings_of(s3, quant) | away)
    download = await service.fetched("tiny-q4")
    assert download.error.reason == "SOURCE_UNAVAILABLE"
    assert "cannot be reached: Connection refused" in download.error.message


async def test_without_a_store_of_quant_the_setting_is_named(
    quant: FakeQuant, one_settings: Settings, open_with: OpenWith
) -> None:
    service = await open_with(one_settings, quant_service_url=quant.url)
    download = await service.fetched("tiny-q4")
    assert "set QUANT_MINIO_ENDPOINT" in download.error.message


async def test_without_quant_an_address_of_it_is_refused(sqlite_service: Service) -> None:
    with refused("QUANT_NOT_CONFIGURED") as refusal:
        await sqlite_service.start("m1", "quant:tiny-q4")
    assert "set QUANT_SERVICE_URL" in str(refusal)


async def test_a_download_that_failed_elsewhere_is_not_sent_to_quant(quant: FakeQuant, quant_service: Service) -> None:
    await quant_service.fetched("m1", "https://localhost/a.gguf")
    await quant_service.start("m1")
    async with asyncio.timeout(PATIENCE):
        while (await quant_service.get("m1")).state != pb.DOWNLOAD_STATE_FAILED:
            await asyncio.sleep(0.01)
    assert quant.asked == []
