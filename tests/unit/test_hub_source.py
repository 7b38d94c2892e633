"""Models of the Hugging Face Hub: one file at one commit, with the digest that the Hub lists. The Hub is a FAKE on loopback."""

from __future__ import annotations

import difflib
import threading
import unicodedata
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from llamesh.hub_addresses import HubAddress
from services.download.sources import (
    AddressRules,
    HubSource,
    SourceChangedError,
    SourceError,
    SourceObject,
    SourceRefusedError,
    Sources,
)
from services.download.sources.hub_listing import MAX_FILES, MAX_NAME_CHARACTERS
from tests.unit.fake_hub import COMMIT, FakeHub, Repository, fake_hub

Q4, Q8, F16 = b"GGUF-q4" * 1000, b"GGUF-q8" * 2000, b"GGUF-f16" * 3000
DIGESTS = {
    "tiny-Q4_K_M.gguf": Q4,
    "tiny-Q8_0.gguf": Q8,
    "sub/tiny.F16.gguf": F16,
    "mmproj-tiny-F16.gguf": b"GGUF-p",
    "README.md": b"hello",
}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as state:
        state.repositories["ada/tiny-GGUF"] = Repository(dict(DIGESTS))
        yield state


def source(hub: FakeHub, token: str = "") -> HubSource:
    return HubSource(AddressRules(), f"{hub.url}/", SecretStr(token))


async def read(found: SourceObject) -> bytes:
    return b"".join([chunk async for chunk in found.chunks])


async def fetched(hub: FakeHub, address: str, token: str = "") -> bytes:
    async with source(hub, token).open(address) as found:
        return await read(found)


async def test_a_file_comes_with_size_digest_and_commit(hub: FakeHub) -> None:
    import hashlib

    async with source(hub).open("hf:ada/tiny-GGUF:Q8_0") as found:
        assert (found.name, found.size, found.revision) == ("tiny-Q8_0.gguf", len(Q8), COMMIT)
        assert found.sha256 == hashlib.sha256(Q8).hexdigest()
        assert await read(found) == Q8
        assert found.read is not None
        assert b"".join([chunk async for chunk in found.read(7, 100)]) == Q8[7:107]
    # The bytes were asked for at the commit, whatever main is meanwhile.
    assert f"/ada/tiny-GGUF/resolve/{COMMIT}/tiny-Q8_0.gguf" in [path for path, _ in hub.asked]


@pytest.mark.parametrize(
    ("address", "data"),
    [
        ("hf:ada/tiny-GGUF", Q4),
        ("hf:ada/tiny-GGUF:q4_k_m", Q4),
        ("hf:ada/tiny-GGUF:F16", F16),
        ("hf:ada/tiny-GGUF/sub/tiny.F16.gguf", F16),
        ("hf:ada/tiny-GGUF/mmproj-tiny-F16.gguf", b"GGUF-p"),
        (f"hf:ada/tiny-GGUF@{COMMIT}:Q8_0", Q8),
    ],
)
async def test_the_file_that_is_meant(hub: FakeHub, address: str, data: bytes) -> None:
    assert await fetched(hub, address) == data


@pytest.mark.parametrize(
    ("files", "address", "words"),
    [
        (["a-Q8_0.gguf", "a-Q5_K_M.gguf", "a-Q4_K_S.gguf"], "", "did you mean hf:ada/x:Q4_K_S? There are Q4_K_S"),
        (["a-Q8_0.gguf", "a-UD-Q4_K_XL.gguf"], ":Q4_K_XL", "did you mean hf:ada/x:UD-Q4_K_XL?"),
        (
            ["a-Q8_0.gguf", "a-IQ4_XS.gguf"],
            ":Q80",
            "no file of the type Q80: did you mean hf:ada/x:Q8_0? There are Q8_0 (0 MiB)",
        ),
        (
            ["a-Q8_0.gguf", "b-Q8_0.gguf"],
            ":Q8_0",
            "2 models of the type Q8_0: name one: hf:ada/x/a-Q8_0.gguf (0 MiB); hf:ada/x/b-Q8",
        ),
        (["a.gguf", "b.gguf"], "", "did you mean hf:ada/x/a.gguf? There are hf:ada/x/a.gguf (0 MiB), hf:ada/x/b.gguf"),
        (["a-Q8_0.gguf"], "/a-Q8_O.gguf", "has no file a-Q8_O.gguf: did you mean hf:ada/x/a-Q8_0.gguf?"),
        (
            ["a-Q8_0-00001-of-00003.gguf", "a-Q8_0-00003-of-00003.gguf"],
            ":Q8_0",
            "ada/x lacks part 2 of 3 of a-Q8_0.gguf: ask its owner",
        ),
        (
            ["a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf", "a-F16.gguf"],
            ":Q4_0",
            "There are Q8_0 (0 MiB), F16",
        ),
        (["a-00001-of-99999.gguf"], "", "a model in 99999 parts; at most 256 are taken"),
        (["model.safetensors"], "", "safetensors only; `llamesh quantize hf:ada/x --types Q4_K_M` converts it"),
        ([], "", "has no GGUF file"),
    ],
)
async def test_an_ambiguous_address_is_refused_with_the_available_files(
    hub: FakeHub, files: list[str], address: str, words: str
) -> None:
    hub.repositories["ada/x"] = Repository(dict.fromkeys(files, b"GGUF"))
    with pytest.raises(SourceError) as caught:
        await fetched(hub, f"hf:ada/x{address}")
    assert words in str(caught.value)
    assert not caught.value.transient


async def test_only_model_files_count(hub: FakeHub) -> None:
    files = {"a-Q8_0.gguf": Q8, "mmproj-a.gguf": b"p", "imatrix.gguf": b"i"}
    hub.repositories["ada/one"] = Repository(files)
    assert await fetched(hub, "hf:ada/one") == Q8


async def test_a_repository_that_moved_is_followed(hub: FakeHub) -> None:
    hub.moved["bob/old"] = "ada/tiny-GGUF"
    hub.repositories["bob/old"] = hub.repositories["ada/tiny-GGUF"]
    assert await fetched(hub, "hf:bob/old:Q8_0") == Q8


async def test_the_token_opens_gated_repositories(hub: FakeHub) -> None:
    hub.repositories["ada/tiny-GGUF"].gated = True
    hub.readers.add("hf_right")
    with pytest.raises(SourceError, match=f"is gated: accept its terms at {hub.url}/ada/tiny-GGUF, and set HF_TOKEN"):
        await fetched(hub, "hf:ada/tiny-GGUF")
    with pytest.raises(SourceError, match="refuses the token in HF_TOKEN") as caught:
        await fetched(hub, "hf:ada/tiny-GGUF", "hf_wrong")
    assert "hf_wrong" not in str(caught.value)
    assert await fetched(hub, "hf:ada/tiny-GGUF", "hf_right") == Q4


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "hf:eve/none",
            "has no repository eve/none, or it is private and HF_TOKEN is not set: `llamesh search none` looks for others",
        ),
        ("hf:ada/tiny-GUFF:Q8_0", "did you mean hf:ada/tiny-GGUF?"),
        ("hf:eve/tiny-GGUF", "did you mean hf:ada/tiny-GGUF?"),
        ("hf:ada/tiny-GGUF@v9", "ada/tiny-GGUF has no revision v9"),
    ],
)
async def test_a_model_that_the_hub_lacks_is_refused_with_the_reason(hub: FakeHub, address: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        await fetched(hub, address)
    assert not caught.value.transient


async def test_a_search_that_does_not_answer_in_time_delays_no_refusal(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.sources.hub.NEAREST_SECONDS", 0.0)
    with pytest.raises(SourceError, match="`llamesh search tiny` looks for others"):
        await fetched(hub, "hf:eve/tiny-GGUF")


@pytest.mark.parametrize("location", ["https://169.254.169.254/x", "http://127.0.0.1:9/x", "https://localhost/x"])
async def test_the_hub_cannot_send_the_mesh_to_a_private_host(hub: FakeHub, location: str) -> None:
    """Not even where its own host is private, as that of a mirror in a company."""
    hub.redirect = location
    with pytest.raises(SourceRefusedError):
        await fetched(hub, "hf:ada/tiny-GGUF")


async def test_another_size_than_listed_is_a_change(hub: FakeHub) -> None:
    hub.repositories["ada/tiny-GGUF"].sizes["tiny-Q4_K_M.gguf"] = 5
    with pytest.raises(SourceChangedError, match="the Hub lists it with 5"):
        await fetched(hub, "hf:ada/tiny-GGUF")


async def test_a_file_outside_of_lfs_has_no_digest(hub: FakeHub) -> None:
    hub.repositories["ada/tiny-GGUF"].not_in_lfs.add("tiny-Q4_K_M.gguf")
    async with source(hub).open("hf:ada/tiny-GGUF") as found:
        assert (found.sha256, await read(found)) == ("", Q4)


async def test_a_server_that_is_not_the_hub_is_refused_with_the_remedy(hub: FakeHub) -> None:
    hub.repositories["ada/tiny-GGUF"].commit = "../../etc"
    with pytest.raises(SourceError, match="does not answer like the Hugging Face Hub: check HF_ENDPOINT"):
        await fetched(hub, "hf:ada/tiny-GGUF@main")


def test_addresses_are_checked_unseen() -> None:
    hub = HubSource(AddressRules(), "https://huggingface.co")
    checked = hub.check("hf:ada/tiny-GGUF:Q8_0")
    assert (checked.shown, checked.name) == ("hf:ada/tiny-GGUF:Q8_0", "tiny:Q8_0")
    with pytest.raises(SourceRefusedError, match="hf:OWNER/REPO"):
        hub.check("hf:ada")


@pytest.mark.parametrize(
    "name",
    ["\ud800.gguf", "a\x1b[2J.gguf", "a\u202efugg.gguf", "a\nb.gguf", "a" * 1020 + ".gguf", "\u00fc" * 510 + ".gguf"],
)
async def test_a_file_name_that_may_not_be_shown_is_refused(hub: FakeHub, name: str) -> None:
    hub.repositories["ada/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": Q4, name: b"GGUF"})
    for address in ("hf:ada/tiny-GGUF", "hf:ada/tiny-GGUF:Q3_K_M", "hf:ada/tiny-GGUF/other.gguf"):
        with pytest.raises(SourceRefusedError, match="ada/tiny-GGUF has a GGUF file whose name is not UTF-8") as caught:
            await fetched(hub, address)
        assert name not in str(caught.value)


async def test_the_names_of_a_listing_are_checked_once_and_not_on_the_event_loop(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file of a model in parts checked all names of its repository again, letter by letter, while no other call was answered."""
    parts = {f"m-{number:05}-of-00030.gguf": b"GGUF" for number in range(1, 31)}
    others = {f"{'x' * 900}{number}.gguf": b"GGUF" for number in range(50)}
    hub.repositories["ada/x"] = Repository(parts | others)
    category, threads = unicodedata.category, []

    def counted(letter: str) -> str:
        threads.append(threading.get_ident())
        return category(letter)

    monkeypatch.setattr(unicodedata, "category", counted)
    reader = source(hub)
    files = await reader.files("hf:ada/x/m-00001-of-00030.gguf")
    for file in files:
        async with reader.open(file.address) as found:
            assert await read(found) == b"GGUF"
    assert len(files) == 30
    assert len(threads) <= sum(map(len, parts | others))
    assert threading.get_ident() not in threads


async def test_a_model_is_chosen_away_from_the_event_loop(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.download.sources import hub as module

    choose, threads = module.choose, []

    def observed(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return choose(*arguments)

    monkeypatch.setattr(module, "choose", observed)
    reader = source(hub)
    await reader.files("hf:ada/tiny-GGUF")
    async with reader.open("hf:ada/tiny-GGUF"):
        assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_few_types_are_compared_letter_by_letter(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of a repository are its owner's: comparing thousands of long types took seconds."""
    types = [f"Q{number % 9}" + "".join(f"_{digit}" for digit in f"{number:04}") for number in range(300)]
    hub.repositories["ada/x"] = Repository({f"m-{type_}.gguf": b"" for type_ in types})
    compared: list[object] = []
    ratio = difflib.SequenceMatcher.ratio

    def counted(matcher: Any) -> float:
        compared.append(matcher)
        return ratio(matcher)

    monkeypatch.setattr(difflib.SequenceMatcher, "ratio", counted)
    with pytest.raises(SourceError, match="did you mean hf:ada/x:Q4_"):
        await fetched(hub, "hf:ada/x")
    assert len(compared) <= 20


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([f"{number}.gguf" for number in range(MAX_FILES + 1)], f"has {MAX_FILES + 1} GGUF files; .* most {MAX_FILES}"),
        (
            [f"{'x' * 1000}{number}.gguf" for number in range(MAX_NAME_CHARACTERS // 1000)],
            "more than .* characters together",
        ),
    ],
    ids=["files", "letters"],
)
async def test_a_repository_with_more_than_is_kept_is_refused(hub: FakeHub, names: list[str], words: str) -> None:
    hub.repositories["ada/x"] = Repository(dict.fromkeys(names, b""))
    reader = source(hub)
    with pytest.raises(SourceRefusedError, match=words):
        await reader.files("hf:ada/x/0.gguf")


async def test_a_listing_keeps_nothing_but_files_of_models(hub: FakeHub) -> None:
    """Eight listings of a hostile repository kept 40 MiB each."""
    names = [f"{number}.txt" for number in range(MAX_FILES + 1)]
    hub.repositories["ada/x"] = Repository({**dict.fromkeys(names, b""), "a.gguf": b"GGUF"})
    reader = source(hub)
    listing = await reader.listing(HubAddress("ada", "x"))
    assert list(listing.files) == ["a.gguf"]


async def test_a_size_that_no_file_has_is_unknown(hub: FakeHub) -> None:
    hub.repositories["ada/tiny-GGUF"] = Repository({"a.gguf": Q4, "b.gguf": Q8}, sizes={"a.gguf": 10**400})
    with pytest.raises(SourceError, match="has several models"):
        await fetched(hub, "hf:ada/tiny-GGUF")


@pytest.mark.parametrize(
    "endpoint", ["https://mirror.example", "https://Mirror.example/", "https://mirror.example:443"]
)
def test_pages_of_a_mirror_without_a_port_are_addresses_of_models(endpoint: str) -> None:
    """The host had the default port, which people do not write, so its pages were taken for files."""
    mirror = HubSource(AddressRules(), endpoint)
    known = Sources({"hf": mirror}, {mirror.host})
    assert known.check("https://mirror.example/ada/tiny-GGUF").address == "hf:ada/tiny-GGUF"
