"""Ids and names are both taken; what means several things is an error that lists them."""

from __future__ import annotations

import pytest

from llamesh.client.names import AmbiguousNameError, resolve

KNOWN = [("0f0c6a0e", "qwen"), ("0f0c7b1f", "smol"), ("a1b2c3d4", "smol"), ("qwen", "other")]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("0f0c6a0e", "0f0c6a0e"),
        ("other", "qwen"),
        ("qwen", "qwen"),
        ("a1b2", "a1b2c3d4"),
        ("0f0c6", "0f0c6a0e"),
        ("a1b", "a1b"),
        ("unknown", "unknown"),
    ],
)
def test_one_thing_is_meant(wanted: str, meant: str) -> None:
    assert resolve(wanted, KNOWN, shortened=True) == meant


@pytest.mark.parametrize(("wanted", "ids"), [("smol", ("0f0c7b1f", "a1b2c3d4")), ("0f0c", ("0f0c6a0e", "0f0c7b1f"))])
def test_several_are_meant(wanted: str, ids: tuple[str, ...]) -> None:
    with pytest.raises(AmbiguousNameError) as caught:
        resolve(wanted, KNOWN, shortened=True)
    assert caught.value.ids == ids


@pytest.mark.parametrize("wanted", ["word", "words2", "words2cop"])
def test_ids_that_people_give_are_never_shortened(wanted: str) -> None:
    """`rm words2` must not remove words2copy."""
    assert resolve(wanted, [("words2copy", "Words"), ("other", "")]) == wanted
