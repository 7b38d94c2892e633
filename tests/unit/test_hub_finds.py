"""What a search of the Hub finds is read without trust, and the models of a repository are its files, the parts of one together."""

from __future__ import annotations

from typing import Any

import pytest

from llamesh.hub_addresses import HubAddress
from services.download.memory_fits import MeshMemory
from services.download.sources.hub_found import MAX_MODELS, MAX_TAGS, models_of, read_found
from services.download.sources.hub_listing import HubFile, HubListing, read_listing
from services.download.sources.source import SourceRefusedError
from tests.unit.fake_hub import COMMIT

REPOSITORY = HubAddress("ada", "tiny-GGUF")
DIGEST = "ab" * 32
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1 << 63,
    1 << 70,
    0.5,
    float("nan"),
    "",
    "x" * 99,
    "\udcff",
    [],
    {},
    [[]],
    {"a": 1},
)
"""What a hostile Hub says where something else is expected."""


def listing(*files: HubFile) -> HubListing:
    siblings = [{"rfilename": file.path, "size": file.size, "lfs": {"sha256": file.sha256}} for file in files]
    return read_listing({"sha": COMMIT, "siblings": siblings}, REPOSITORY.repository)


def models(*files: HubFile) -> list[tuple[str, int | None, int, str]]:
    found = models_of(REPOSITORY, listing(*files))
    return [(model.source, model.size, model.files, model.sha256) for model in found]


def test_a_repository_is_read_with_its_counts_and_license() -> None:
    (found,) = read_found(
        [
            {
                "id": "ada/tiny-GGUF",
                "downloads": 12,
                "likes": 3,
                "gated": "manual",
                "tags": ["gguf", "license:apache-2.0"],
                "siblings": [],
            }
        ],
        1,
    )
    assert found.address == REPOSITORY
    assert (found.downloads, found.likes, found.gated, found.license) == (12, 3, True, "apache-2.0")


@pytest.mark.parametrize("name", ["gpt2", "", "a/b/c.txt", "a/../b", "-/x", "a b/c", "a/b\n"])
def test_a_repository_without_a_usable_name_is_left_out(name: str) -> None:
    assert read_found([{"id": name}], 1) == []


@pytest.mark.parametrize("document", [None, {}, {"error": "x"}, "text", [1], [["id"]]])
def test_what_is_no_list_of_repositories_is_an_error(document: Any) -> None:
    with pytest.raises(ValueError, match="not a list"):
        read_found(document, 5)


@pytest.mark.parametrize("name", ["downloads", "likes", "gated", "tags", "id"])
def test_no_description_of_a_repository_is_trusted(name: str) -> None:
    licenses = [[f"license:{value}", value] for value in VALUES]
    for value in (*VALUES, *licenses):
        for found in read_found([{"id": "ada/tiny-GGUF", name: value}], 1):
            assert 0 <= found.downloads < 1 << 63
            assert 0 <= found.likes < 1 << 63
            assert len(found.license) <= 64
            found.license.encode()


def test_a_model_is_fetched_by_its_type_if_only_one_has_it_and_else_by_its_path() -> None:
    found = models(
        HubFile("tiny-Q8_0.gguf", 80, DIGEST),
        HubFile("tiny-Q4_K_M.gguf", 40, ""),
        HubFile("old/tiny-Q4_K_M.gguf", 41, ""),
        HubFile("tiny.gguf", None, ""),
        HubFile("tiny.imatrix.gguf", 1, ""),
        HubFile("README.md", 1, ""),
        HubFile("lacks-F16-00001-of-00002.gguf", 1, ""),
    )
    assert found == [
        ("hf:ada/tiny-GGUF/old/tiny-Q4_K_M.gguf", 41, 1, ""),
        ("hf:ada/tiny-GGUF/tiny-Q4_K_M.gguf", 40, 1, ""),
        ("hf:ada/tiny-GGUF:Q8_0", 80, 1, DIGEST),
        ("hf:ada/tiny-GGUF/tiny.gguf", None, 1, ""),
    ]


def test_only_the_name_of_a_file_says_that_it_is_no_model_and_not_its_folder() -> None:
    found = models(
        HubFile("imatrix-quants/tiny-Q4_K_M.gguf", 40, ""),
        HubFile("mmproj-variants/tiny-Q8_0.gguf", 80, ""),
        HubFile("mmproj-variants/MMPROJ-F16.gguf", 5, ""),
        HubFile("imatrix-quants/tiny.Imatrix.gguf", 1, ""),
    )
    assert {source for source, *_ in found} == {"hf:ada/tiny-GGUF:Q4_K_M", "hf:ada/tiny-GGUF:Q8_0"}


def test_a_model_counts_with_the_projector_that_is_fetched_with_it() -> None:
    weights, projector = HubFile("tiny-Q8_0.gguf", 80, DIGEST), HubFile("mmproj-tiny-f16.gguf", 5, "")
    assert models(weights, projector) == [("hf:ada/tiny-GGUF:Q8_0", 85, 2, DIGEST)]


def test_the_parts_of_a_model_count_together() -> None:
    parts = [HubFile(f"big/big-Q8_0-0000{number}-of-00003.gguf", number * 10, DIGEST) for number in (2, 1, 3)]
    assert models(*parts) == [("hf:ada/tiny-GGUF:Q8_0", 60, 3, "")]
    assert models(*parts, HubFile("x-Q8_0.gguf", None, ""))[0][0].endswith("-00001-of-00003.gguf")


def test_the_number_of_models_is_bounded() -> None:
    files = [HubFile(f"m{number:03}.gguf", 1, "") for number in range(MAX_MODELS + 5)]
    assert len(models(*files)) == MAX_MODELS


def test_a_repository_with_a_name_that_may_not_be_shown_is_refused() -> None:
    with pytest.raises(SourceRefusedError):
        models(HubFile("bad\nname.gguf", 1, ""))


def test_no_more_of_an_answer_is_read_than_was_asked_for() -> None:
    """A Hub, or who answers in its place, sends megabytes: each entry would be taken apart while all other calls wait."""
    document: list[dict[str, Any]] = [{"id": "x"}, {"id": "ada/a"}, {"id": "ada/b"}, {"id": "ada/c"}]
    assert [found.address.repo for found in read_found(document, 3)] == ["a", "b"]
    assert not read_found([{"id": "ada/" + "a" * 300}], 1)
    tags = [*["x"] * MAX_TAGS, "license:mit"]
    assert [found.license for found in read_found([{"id": "ada/a", "tags": tags}], 1)] == [""]


def test_the_projectors_are_put_in_order_once_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [HubFile(f"{kind}{number:03}.gguf", 1, "") for number in range(MAX_MODELS) for kind in ("m", "mmproj-")]
    known = HubFile.type.fget  # type: ignore[attr-defined]
    read: list[str] = []

    def counted(file: HubFile) -> Any:
        read.append(file.path)
        return known(file)

    monkeypatch.setattr(HubFile, "type", property(counted))
    assert len(models(*files)) == MAX_MODELS
    # Each model compared all projectors, so that this was the number of models times that of the projectors.
    assert len(read) <= 5 * len(files)


@pytest.mark.parametrize(
    ("needed", "fit"), [(0, 0), (10, 1), (11, 2), (20, 2), (21, 3)], ids=["unknown", "now", "more", "all", "no"]
)
def test_a_model_fits_now_or_if_others_stop_or_not(needed: int, fit: int) -> None:
    assert MeshMemory(free=10, total=20).fit(needed) == fit
    assert MeshMemory().fit(needed) == 0
