"""Downloads from a FAKE of the Hugging Face Hub: verified against its digests, continued where a stream breaks off, clear when wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from services.download.source_names import same_source
from tests.contract.download.conftest import TINY, OpenWith, Service, sha256
from tests.contract.model_source import model_bytes
from tests.contract.rich_status import refused
from tests.unit.fake_hub import COMMIT, FakeHub, Repository, fake_hub

LARGE = model_bytes("large", 3 << 20)


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as state:
        state.repositories["ada/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": TINY, "tiny-Q8_0.gguf": LARGE})
        state.readers.add("hf_right")
        yield state


@pytest.fixture
async def hub_service(hub: FakeHub, one_settings: Settings, open_with: OpenWith) -> Service:
    return await open_with(one_settings, hf_endpoint=hub.url, hf_token=SecretStr("hf_right"))


@pytest.mark.parametrize(
    "address", ["hf:ada/tiny-GGUF:Q8_0", "hf.co/ada/tiny-GGUF:q8_0", "https://hf.co/ada/tiny-GGUF:Q8_0"]
)
async def test_a_model_comes_from_the_hub(hub_service: Service, address: str) -> None:
    download = await hub_service.fetched("m1", address)
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert (download.sha256, download.name.lower()) == (sha256(LARGE), "tiny:q8_0")
    assert (download.revision, (await hub_service.model("m1")).revision) == (COMMIT, COMMIT)
    assert (await hub_service.path("m1")).read_bytes() == LARGE


async def test_two_spellings_of_one_model_are_one_download(hub: FakeHub, hub_service: Service) -> None:
    await hub_service.fetched("m1", "hf:ada/tiny-GGUF/tiny-Q8_0.gguf")
    asked = len(hub.asked)
    page = f"http://{hub.host}/ada/tiny-GGUF/blob/main/tiny-Q8_0.gguf"
    for other in ("https://huggingface.co/ada/tiny-GGUF/resolve/main/tiny-Q8_0.gguf?download=true", page):
        assert (await hub_service.start("m1", other)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert len(hub.asked) == asked


def test_a_page_that_an_earlier_release_recorded_is_the_same_source() -> None:
    page = "https://huggingface.co/ada/tiny-GGUF/resolve/main/tiny-Q8_0.gguf?download=true"
    assert same_source("hf:ada/tiny-GGUF/tiny-Q8_0.gguf", page)
    assert same_source("", page)
    assert not same_source("hf:ada/tiny-GGUF/tiny-Q4_0.gguf", page)
    assert not same_source("hf:ada/tiny-GGUF", "https://huggingface.co/models")


async def test_bytes_that_are_not_those_of_the_listing_are_refused(hub: FakeHub, hub_service: Service) -> None:
    hub.repositories["ada/tiny-GGUF"].digests["tiny-Q8_0.gguf"] = "0" * 64
    download = await hub_service.fetched("m1", "hf:ada/tiny-GGUF:Q8_0")
    assert (download.error.reason, hub_service.stored) == ("CONTENT_MISMATCH", [])


async def test_a_digest_that_cannot_come_is_refused_before_a_byte_moves(hub_service: Service) -> None:
    download = await hub_service.fetched("m1", "hf:ada/tiny-GGUF:Q8_0", sha256="ab" * 32)
    assert download.error.reason == "CONTENT_MISMATCH"
    assert (download.bytes_done, hub_service.stored) == (0, [])


async def test_a_stream_that_breaks_off_is_continued_at_its_offset(hub: FakeHub, hub_service: Service) -> None:
    hub.cut_after = [1 << 20, 500_000, 0, 0, 1]
    download = await hub_service.fetched("m1", "hf:ada/tiny-GGUF:Q8_0")
    assert (download.state, download.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(LARGE))
    listings = [path for path, _ in hub.asked if path.startswith("/api/")]
    assert len(listings) == 1, "it was not begun again"


async def test_a_stream_whose_object_changes_is_begun_again(hub: FakeHub, hub_service: Service) -> None:
    other = model_bytes("other", 2 << 20)
    hub.cut_after, hub.after_cut = [1 << 20], {"tiny-Q8_0.gguf": other}
    download = await hub_service.fetched("m1", "hf:ada/tiny-GGUF:Q8_0")
    assert (download.state, download.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(other))


async def test_the_types_that_there_are_stand_in_the_error(hub_service: Service) -> None:
    download = await hub_service.fetched("m1", "hf:ada/tiny-GGUF:Q5_K_M")
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "SOURCE_REFUSED")
    assert "did you mean hf:ada/tiny-GGUF:Q4_K_M? There are Q4_K_M" in download.error.message


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("ada/tiny-GGUF:Q8_0", "did you mean hf:ada/tiny-GGUF:Q8_0?"),
        ("huggingface:ada/tiny", "did you mean hf:ada/tiny?"),
        ("hf:tiny", "hf:OWNER/REPO"),
        ("htps://models.example/a.gguf", "did you mean https://models.example/a.gguf?"),
        ("nonsense", "give https://HOST/PATH/FILE.gguf, hf:OWNER/REPO:Q4_K_M"),
    ],
)
async def test_a_wrong_form_is_refused_with_the_nearest_right_one(hub_service: Service, source: str, hint: str) -> None:
    with refused("SOURCE_REFUSED") as refusal:
        await hub_service.start("m1", source)
    assert hint in str(refusal)


async def test_the_token_goes_to_the_hub_and_into_no_message(hub: FakeHub, hub_service: Service) -> None:
    hub.repositories["ada/tiny-GGUF"].gated = True
    assert (await hub_service.fetched("m1", "hf:ada/tiny-GGUF")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert {token for _, token in hub.asked} == {"Bearer hf_right"}
    hub.readers.clear()
    download = await hub_service.fetched("m2", "hf:ada/tiny-GGUF")
    assert "HF_TOKEN" in download.error.message
    assert "hf_right" not in str(download)
