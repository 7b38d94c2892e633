"""The weights of a checkpoint are counted by the types in the header of its file, and by config.json where it is not known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.quant.stored_types import MAX_HEADER_BYTES, bytes_of_types, bytes_to_read, weights_of

CONFIG = {"torch_dtype": "float32"}


def tensor(of_type: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": of_type, "shape": [1], "data_offsets": [begin, end]}


def beginning(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def test_the_types_of_the_files_count_and_not_that_of_the_configuration() -> None:
    header = {"__metadata__": {"format": "pt"}, "a": tensor("BF16", 0, 600), "b": tensor("F32", 600, 1000)}
    types = bytes_of_types(beginning(header) + b"weights")
    assert types == {"BF16": 600, "F32": 400}
    assert weights_of(types, CONFIG, 10_000) == ("BF16", 4000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        beginning({"a": tensor("F16", 0, 2)})[:-1],
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
        b"\xff" * 64,
        beginning([]),
        beginning({"a": 1}),
        beginning({"a": {"dtype": ["F16"], "data_offsets": [0, 2]}}),
        beginning({"a": {"dtype": "F16", "data_offsets": [0]}}),
        beginning({"a": tensor("F16", 2, 0), "b": tensor("F8_E4M3", 0, 9), "c": tensor("F16", 0, 1 << 60)}),
        beginning({"a": tensor("F16", True, 2.5)}),
    ],
)
def test_a_header_that_cannot_be_read_leaves_the_type_of_the_configuration(data: bytes) -> None:
    assert bytes_of_types(data) == {}
    assert weights_of({}, CONFIG, 4000) == ("F32", 1000)


def test_no_more_than_the_header_is_asked_for() -> None:
    data = beginning({"a": tensor("F16", 0, 2)})
    assert (bytes_to_read(data[:7]), bytes_to_read(data), bytes_to_read(b"\xff" * 8)) == (8, len(data), 0)


@pytest.mark.parametrize(
    ("first", "named", "expected"),
    [
        # The first file is another one: 250 weights of 4 bytes, 4,500 of 2.
        ("F32", "bfloat16", ("BF16", 4750)),
        # Or config.json is wrong: nobody knows, and the disk that a job needs must not be too small.
        ("BF16", "float32", ("BF16", 5000)),
        ("BF16", "bfloat16", ("BF16", 5000)),
    ],
)
def test_the_first_of_several_files_may_be_another_one(first: str, named: str, expected: tuple[str, int]) -> None:
    assert weights_of({first: 8}, {"torch_dtype": named}, 1000, 9000) == expected
