"""A repository with one type in several sets of parts: the name that the user gave decides, else the candidates are named."""

from __future__ import annotations

import pytest

from llamesh.hub_addresses import read_hub_address
from services.download.sources import SourceError
from services.download.sources.hub_files import choose
from services.download.sources.hub_found import models_of
from services.download.sources.hub_listing import HubListing, read_listing
from tests.unit.fake_hub import COMMIT


def part_names(stem: str, count: int) -> list[str]:
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


TWO, THREE, OTHER = part_names("m-Q8_0", 2), part_names("m-Q8_0", 3), part_names("alt/m-Q8_0", 2)
NAMED = "hf:ada/x/m-Q8_0-00001-of-00002.gguf in 2 parts (2 MiB); hf:ada/x/{other} in {count} parts ({size} MiB)"


def listed(*names: str) -> HubListing:
    return read_listing({"sha": COMMIT, "siblings": [{"rfilename": name, "size": 1 << 20} for name in names]}, "ada/x")


def chosen(names: list[str], address: str) -> list[str]:
    return [file.path for file in choose(listed(*names), read_hub_address(f"hf:ada/x{address}"))]


def refusal(names: list[str], address: str) -> str:
    with pytest.raises(SourceError) as refused:
        chosen(names, address)
    return str(refused.value)


@pytest.mark.parametrize("address", [":Q8_0", "", "/m-Q8_0.gguf"])
def test_sets_of_two_counts_are_refused_with_the_first_part_of_each(address: str) -> None:
    words = refusal([*TWO, *THREE], address)
    assert NAMED.format(other=THREE[0], count=3, size=3) in words


@pytest.mark.parametrize("address", [":Q8_0", ""])
def test_sets_of_two_folders_are_refused_with_the_first_part_of_each(address: str) -> None:
    assert NAMED.format(other=OTHER[0], count=2, size=2) in refusal([*TWO, *OTHER], address)


def test_any_part_of_a_set_names_it() -> None:
    for wanted in (TWO, THREE, OTHER):
        for name in wanted:
            assert chosen([*TWO, *THREE, *OTHER], f"/{name}") == wanted


def test_the_name_without_the_number_of_a_part_names_the_set_of_its_folder() -> None:
    assert chosen([*TWO, *OTHER], "/m-Q8_0.gguf") == TWO
    assert chosen([*TWO, *OTHER], "/alt/m-Q8_0.gguf") == OTHER


def test_a_set_that_lacks_a_part_is_no_candidate_beside_a_complete_one() -> None:
    names = [*TWO, *THREE[:2]]
    assert chosen(names, ":Q8_0") == chosen(names, "") == TWO
    # A search lists it by its type, which is the address that is then fetched.
    [found] = models_of(read_hub_address("hf:ada/x"), listed(*names))
    assert found.source == "hf:ada/x:Q8_0"


def test_a_set_that_lacks_a_part_is_named_with_it_if_it_is_meant() -> None:
    assert "lacks part 3 of 3" in refusal([*TWO, *THREE[:2]], f"/{THREE[0]}")
