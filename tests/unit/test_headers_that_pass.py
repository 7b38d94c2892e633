"""The expression for every header but those on the allow-list."""

from __future__ import annotations

import re

import pytest

from controller.xds.header_names import PASSED, all_but


@pytest.mark.parametrize("name", [*PASSED, ":path", ":method", ":authority", ":scheme"])
def test_listed_headers_are_not_removed(name: str) -> None:
    assert not re.fullmatch(all_but(PASSED), name)


@pytest.mark.parametrize("name", [*PASSED])
def test_every_other_name_is(name: str) -> None:
    others = [name[:end] for end in range(1, len(name))] + [f"{name}x", f"{name}-", f"x{name}", f"x{name[1:]}"]
    for other in set(others) - set(PASSED):
        assert re.fullmatch(all_but(PASSED), other), other


@pytest.mark.parametrize(
    "name", ["cookie", "user-agent", "x-llamesh-cluster", "x-envoy-retry-on", "x-conversation-id", "x_api_key"]
)
def test_headers_of_browsers_sdks_and_the_mesh_are_removed(name: str) -> None:
    assert re.fullmatch(all_but(PASSED), name)


def test_a_name_that_begins_another_is_kept_apart() -> None:
    expression = re.compile(all_but(["ab", "abc", "b"]))
    assert [name for name in ("a", "ab", "abc", "abcd", "b", "ba", "c") if not expression.fullmatch(name)] == [
        "ab",
        "abc",
        "b",
    ]
