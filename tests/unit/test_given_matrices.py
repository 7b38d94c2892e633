"""The importance matrix that a job is given is read strictly, in both forms of llama-imatrix."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest

from services.quant.step import importance
from services.quant.step.given_matrix import _write
from services.quant.step.matrix_entries import MatrixRefusedError, read_entries
from tests.importance_matrices import write_older_matrix

SHAPES = {"a": (4, 8), "experts": (2, 8, 3), "norm": (4,)}
A, EXPERTS = [1, 2, 3, 4], [[1, 2], [3, 4], [5, 6]]


def write_gguf(path: Path, tensors: dict[str, Any], architecture: str = "") -> None:
    # llama-imatrix names none.
    writer = gguf.GGUFWriter(path, architecture)
    for name, each in tensors.items():
        writer.add_tensor(name, each if isinstance(each, numpy.ndarray) else numpy.array(each, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def layout(**changed: Any) -> dict[str, Any]:
    """The tensors of a sound file; `a_sums=None` leaves one out."""
    tensors = {
        "a.in_sum2": [[5, 10, 15, 20]],
        "a.counts": [[5]],
        "experts.in_sum2": [[5, 10], [15, 20], [7, 7]],
        "experts.counts": [[5], [5], [0]],
    }
    names = {"a_sums": "a.in_sum2", "a_counts": "a.counts", "experts_sums": "experts.in_sum2"}
    tensors |= {names.get(name, name): each for name, each in changed.items()}
    return {name: each for name, each in tensors.items() if each is not None}


@pytest.mark.parametrize("architecture", ["", "llama"])
def test_a_file_is_read_and_written_as_the_quantiser_takes_it(tmp_path: Path, architecture: str) -> None:
    write_gguf(tmp_path / "given.gguf", layout(), architecture)
    _write(tmp_path / "matrix.gguf", read_entries(tmp_path / "given.gguf", SHAPES))
    found = importance.read(tmp_path / "matrix.gguf")
    assert {name: each.tolist() for name, each in found.items()} == {
        "a": [[1, 2, 3, 4]],
        "experts": [[1, 2], [3, 4], [1, 1]],
    }
    fields = gguf.GGUFReader(tmp_path / "matrix.gguf").fields
    assert {"imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"} <= set(fields)


@pytest.mark.parametrize("uses", [0, 1, 5])
@pytest.mark.parametrize("text", [None, "", "/home/ada/secret.txt"])
def test_a_file_of_the_older_form_is_read_and_its_names_are_left_out(
    tmp_path: Path, uses: int, text: str | None
) -> None:
    sums = {"a": numpy.array(A) * max(uses, 1), "experts": numpy.array(EXPERTS) * max(uses, 1)}
    write_older_matrix(tmp_path / "given.dat", sums, uses, text)
    _write(tmp_path / "matrix.gguf", read_entries(tmp_path / "given.dat", SHAPES))
    found = importance.read(tmp_path / "matrix.gguf")
    assert {name: each.tolist() for name, each in found.items()} == {"a": [A], "experts": EXPERTS}
    assert b"secret" not in (tmp_path / "matrix.gguf").read_bytes()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"b.weight.in_sum2": [[1, 2]], "b.weight.counts": [[1]]},
            "the source has no tensor 'b.weight': it is the matrix of another model",
        ),
        ({"my_secret.in_sum2": [[1, 2]], "my_secret.counts": [[1]]}, "no tensor of the name of one of its entries"),
        ({"b.weight.in_sum2": [[1, 2]]}, "the source has no tensor 'b.weight'"),
        ({"a_sums": None}, "the entry a has no sums"),
        ({"a_counts": None}, "the entry a has no counts"),
        ({"a_sums": [[1, 2, 3]]}, "the entry a has 3.* values, its tensor has 1 x 4 columns"),
        ({"a_sums": [[1, 2], [3, 4]]}, "the entry a has 2x2 values, its tensor has 1 x 4 columns"),
        ({"experts_sums": [[1, 2], [3, 4]]}, "the entry experts has 2x2 values, its tensor has 3 x 2 columns"),
        ({"experts.counts": [[1], [1]]}, "the entry experts has 2 counts, its tensor 3 matrices"),
        ({"a_sums": [[1, 2, 3, float("nan")]]}, "the entry a has values that are not finite"),
        ({"a_sums": [[1, 2, 3, float("inf")]]}, "the entry a has values that are not finite"),
        ({"a_sums": [[1, 2, 3, -1]]}, "the entry a has negative values"),
        ({"a_counts": [[-5]]}, "the entry a has negative values"),
        ({"a_counts": [[float("nan")]]}, "the entry a has values that are not finite"),
        ({"a_sums": [[1, 2, 3, 3e38]], "a_counts": [[0.1]]}, "not finite once they are divided"),
        ({"a_sums": numpy.array([[1, 2, 3, 4]], numpy.float16)}, "the entry a has the types F16 and F32, not F32"),
        (
            dict.fromkeys(("a_sums", "a_counts", "experts_sums", "experts.counts")) | {"x": [1]},
            "it has no entries",
        ),
    ],
)
def test_a_file_that_is_no_matrix_of_the_source_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    write_gguf(tmp_path / "given.gguf", layout(**changed))
    with pytest.raises(MatrixRefusedError, match=words):
        read_entries(tmp_path / "given.gguf", SHAPES)


def older(*parts: bytes | int) -> bytes:
    return b"".join(part if isinstance(part, bytes) else struct.pack("<i", part) for part in parts)


FLOATS = struct.pack("<4f", *A)
ENTRY = older(1, b"a", 5, 4, FLOATS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"\1", "it is truncated"),
        (b"no matrix at all", "the number of entries is not 1 to 16384: it is no file of llama-imatrix"),
        (older(0), "the number of entries is not"),
        (older(-1), "the number of entries is not"),
        (older(16_385), "the number of entries is not"),
        (older(1, 0), "the length of a name is not 1 to 255"),
        (older(1, -1), "the length of a name is not"),
        (older(1, 256, b"a" * 256), "the length of a name is not"),
        (older(1, 8, b"b.weight", 5, 4, FLOATS), "the source has no tensor of the name of its first entry"),
        (older(2, ENTRY, 8, b"b.weight", 5, 4, FLOATS), "the source has no tensor 'b.weight': it is the matrix of"),
        (older(2, ENTRY, 8, b"b secret", 5, 4, FLOATS), "the source has no tensor of the name of one of its entries"),
        (older(2, ENTRY, 7, b"\x1b[2.weight"), "the source has no tensor of the name of one of its entries"),
        (older(2, ENTRY, 0), "the length of a name is 0, not 1 to 255"),
        (older(1, 1, b"a", -1, 4, FLOATS), "the uses of a is -1"),
        (older(1, 1, b"a", 5, -4, FLOATS), "the number of values of a is -4"),
        (older(1, 1, b"a", 5, 3, FLOATS), "the entry a has 3 values, its tensor has 1 x 4 columns"),
        (older(1, 1, b"a", 5, (1 << 31) - 1, FLOATS), "the entry a has 2147483647 values"),
        (older(1, 1, b"a", 5, 4, FLOATS[:-1]), "it is truncated"),
        (older(2, ENTRY), "it is truncated"),
        (older(2, ENTRY, ENTRY), "the entry a appears twice"),
        (older(1, 1, b"a", 5, 4, struct.pack("<4f", 1, 2, 3, float("nan"))), "not finite"),
        (older(1, 1, b"a", 5, 4, struct.pack("<4f", 1, 2, 3, -1)), "negative"),
        (older(1, ENTRY, 7), "it is truncated"),
        (older(1, ENTRY, 7, -1), "the length of the name of the text is -1"),
        (older(1, ENTRY, 7, 1 << 30, b"x"), "the length of the name of the text is 1073741824"),
        (older(1, ENTRY, 7, 2, b"x"), "it is truncated"),
        (older(1, ENTRY, 7, 1, b"xy"), "1 bytes follow its end"),
        (b"GGUF", "it is a GGUF file that is truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "it is a GGUF file that is truncated or damaged"),
    ],
)
def test_each_fault_of_a_file_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "given.dat").write_bytes(data)
    with pytest.raises(MatrixRefusedError, match=words):
        read_entries(tmp_path / "given.dat", SHAPES)


def secret_files() -> dict[str, bytes]:
    """Files that are no matrix of the source, with 83 and `hunter` in each place from which a message could take them."""
    secret, number = b"hunter.of.things.weight", 83_838_383
    return {
        "text": b"hunter=83",
        "length of a name": older(1, number),
        "name": older(1, len(secret), secret, 5, 4, FLOATS),
        "binary name": older(1, 12, b"hunter \x00\xff83 "),
        "second name": older(2, ENTRY, 9, b"hunter 83"),
        "number of tensors": b"GGUF" + struct.pack("<IQQ", 3, 83_838_383_838, 0),
        "version": b"GGUF" + struct.pack("<I", 83_838_383),
        "key": b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 9) + b"hunter 83" + struct.pack("<I", 83),
    }


@pytest.mark.parametrize("name", secret_files())
def test_a_refusal_shows_nothing_of_a_file_that_is_no_matrix_of_the_source(tmp_path: Path, name: str) -> None:
    (tmp_path / "given").write_bytes(secret_files()[name])
    with pytest.raises(MatrixRefusedError) as raised:
        read_entries(tmp_path / "given", SHAPES)
    # Its first four bytes as a number are a part of the file too.
    first = int.from_bytes(secret_files()[name][:4], "little", signed=True)
    assert not [
        part
        for part in ("hunter", "83", str(first))
        if len(part) > 1 and part in str(raised.value).replace("16384", "")
    ]


def test_a_refusal_shows_no_names_of_another_model(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "given.gguf", {"hunter.weight.in_sum2": [[1]], "hunter.weight.counts": [[1]], "x.counts": [1]}
    )
    with pytest.raises(MatrixRefusedError, match="no tensor of the name of its first entry"):
        read_entries(tmp_path / "given.gguf", SHAPES)


@pytest.mark.parametrize(
    "write", [lambda path: write_gguf(path, layout()), lambda path: write_older_matrix(path, {"a": A})]
)
def test_no_byte_that_is_missing_or_changed_does_more_than_refuse(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "given"
    write(path)
    whole = path.read_bytes()
    random = numpy.random.default_rng(1)
    wrong = [whole[:length] for length in range(len(whole))]
    for _ in range(300):
        at = int(random.integers(len(whole)))
        wrong.append(whole[:at] + random.bytes(1) + whole[at + 1 :])
    for data in wrong:
        path.write_bytes(data)
        try:
            found = read_entries(path, SHAPES)
        except MatrixRefusedError:
            continue
        for entry in found:
            assert numpy.isfinite(entry.sums).all()
            assert entry.sums.shape[1] == SHAPES[entry.name][0]
