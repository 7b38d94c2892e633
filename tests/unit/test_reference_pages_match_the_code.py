"""The lists in docs/reference are those of the code."""

import pytest

from tools import reference


@pytest.mark.parametrize("name", reference.PAGES)
def test_page(name: str) -> None:
    assert (reference.REFERENCE / name).read_text() == reference.PAGES[name](), "run `make docs`"


def test_every_parameter_and_reason_is_described() -> None:
    for page in reference.PAGES.values():
        for line in page().splitlines():
            if line.startswith("| `"):
                assert [cell.strip() for cell in line.strip("|").split("|")][-1], line
