"""Headers of safetensors files are read strictly: no tensor overlaps another, lies outside the file, or has another size than its shape."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from services.quant.step.safetensors_files import (
    MAX_HEADER_BYTES,
    SafetensorsError,
    read_checkpoint_tensors,
    read_tensors,
)
from tests.checkpoints import write_raw_safetensors, write_safetensors

MATRIX = numpy.arange(12, dtype=numpy.float32).reshape(3, 4)
VECTOR = numpy.array([1.5, -2.0], numpy.float32)


@pytest.mark.parametrize("of_type", ["F32", "F16", "BF16"])
def test_the_tensors_of_a_file_are_found_with_their_bytes(tmp_path: Path, of_type: str) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", {"a": MATRIX, "b": VECTOR}, of_type)
    found = {tensor.name: tensor for tensor in read_tensors(path)}
    assert (found["a"].shape, found["b"].shape, found["a"].type) == ((3, 4), (2,), of_type)
    loaded = numpy.array(found["b"].mapped())
    if of_type == "BF16":
        loaded = (loaded.astype(numpy.uint32) << 16).view(numpy.float32)
    assert loaded.tolist() == VECTOR.tolist()


def _entry(begin: int, end: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}, "does not begin where the one before it ends"),
        ({"a": _entry(0, 4, [1]), "b": _entry(8, 16, [2])}, "does not begin where the one before it ends"),
        ({"a": _entry(4, 12, [2])}, "does not begin"),
        ({"a": _entry(0, 8, [3])}, "another size than its shape"),
        ({"a": _entry(0, 24, [2, 3])}, "by its header it has"),
        ({"a": _entry(0, 8, [2])}, "by its header it has"),
        ({"a": _entry(0, 16, [-4, -1])}, "has no shape"),
        ({"a": _entry(0, 16, [2, 2, 1, 1, 1])}, "has no shape"),
        ({"a": _entry(0, 16, [True, 4])}, "has no shape"),
        ({"a": _entry(0, 16, [4.0])}, "has no shape"),
        ({"a": _entry(0, 16, [16], "I8")}, "is quantised already"),
        ({"a": _entry(0, 16, [16], "F8_E4M3")}, "is quantised already"),
        ({"a": _entry(0, 16, [2], "F64")}, "has the type F64"),
        ({"a": _entry(0, 16, [4], 7)}, "has the type 7"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "data_offsets"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}, "unpack"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]}}, "another size"),
        ({"a": 7}, "not subscriptable"),
        ([], "no JSON object"),
    ],
)
def test_a_file_that_is_not_sound_is_refused(tmp_path: Path, header: Any, said: str) -> None:
    path = write_raw_safetensors(tmp_path / "model.safetensors", header, bytes(16))
    with pytest.raises(SafetensorsError, match=said):
        read_tensors(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        b"\x00" * 8,
        (1 << 63).to_bytes(8, "little") + b"{}",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * 64,
        (2).to_bytes(8, "little") + b"{x",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=["empty", "seven bytes", "no header", "huge length", "long header", "no JSON", "nested"],
)
def test_another_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(SafetensorsError):
        read_tensors(path)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", {"a": MATRIX, "b": VECTOR}, "F32")
    sound, source = path.read_bytes(), random.Random(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(source.randint(1, 3)):
            damaged[source.randrange(len(damaged) - 56)] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            for tensor in read_tensors(path):
                assert numpy.array(tensor.mapped()).nbytes <= len(damaged)
        except SafetensorsError:
            refused += 1
    assert refused > 200


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    paths = [write_safetensors(tmp_path / f"{name}.safetensors", {"a": VECTOR}, "F32") for name in ("x", "y")]
    with pytest.raises(SafetensorsError, match=r"y\.safetensors: the tensor a is in x\.safetensors too"):
        read_checkpoint_tensors(paths)


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    path = write_raw_safetensors(tmp_path / "model.safetensors", {"__metadata__": {}}, b"")
    with pytest.raises(SafetensorsError, match="0 tensors"):
        read_checkpoint_tensors([path])


def test_the_names_of_a_header_may_be_anything(tmp_path: Path) -> None:
    path = write_raw_safetensors(tmp_path / "m.safetensors", {"\u2028\0": _entry(0, 16, [4])}, bytes(16))
    assert [tensor.name for tensor in read_tensors(path)] == [json.loads('"\\u2028\\u0000"')]
