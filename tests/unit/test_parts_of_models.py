"""The files of a split model are found by name, belong together or are refused, and lie beside each other under llama.cpp's names."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from llamesh.kit.errors import MeshError
from llamesh.kit.gguf import MAX_TENSORS, GgufError, read_tensors
from llamesh.part_names import MAX_PARTS, first_part, part_of, parts_of, whole_name
from services.download.model_parts import Header, PartsCheck
from services.download.part_links import PartLinks
from tests.split_models import Parts
from tests.unit.gguf_bytes import STRING, File, pair


@pytest.mark.parametrize(
    ("text", "number", "count"),
    [
        ("a-00002-of-00003.gguf", 2, 3),
        ("https://host/x/a-00001-of-00012.gguf?sig=1#f", 1, 12),
        ("A-00002-of-00002.GGUF", 2, 2),
        ("a.gguf", 1, 1),
        ("a-00004-of-00003.gguf", 1, 1),
        ("a-00000-of-00003.gguf", 1, 1),
        ("a-2-of-3.gguf", 1, 1),
        ("a-00001-of-00002.gguf.txt", 1, 1),
    ],
)
def test_a_name_says_which_part_it_is(text: str, number: int, count: int) -> None:
    assert part_of(text) == (number, count)


def test_one_name_leads_to_all_parts() -> None:
    assert parts_of("s3://b/a-00002-of-00002.gguf") == ["s3://b/a-00001-of-00002.gguf", "s3://b/a-00002-of-00002.gguf"]
    assert first_part("https://h/a-00002-of-00002.gguf?x=y") == "https://h/a-00001-of-00002.gguf?x=y"
    assert whole_name("a-00002-of-00002.gguf") == "a.gguf"
    assert [parts_of("a.gguf"), first_part("a.gguf"), whole_name("a-1-of-2.gguf")] == [
        ["a.gguf"],
        "a.gguf",
        "a-1-of-2.gguf",
    ]
    with pytest.raises(ValueError, match=f"at most {MAX_PARTS}"):
        parts_of(f"a-00001-of-{MAX_PARTS + 1:05d}.gguf")


def header(data: bytes) -> Header:
    return Header(*read_tensors(io.BytesIO(data), len(data)))


def test_parts_of_one_model_pass_as_one() -> None:
    check = PartsCheck(3)
    for data in Parts().files().values():
        check.add(header(data))
    metadata = check.metadata()
    assert (metadata.architecture, metadata.tensor_count, metadata.tensor_bytes) == ("llama", 3, 3 * 128)


LLAMA, QWEN = (pair("general.architecture", STRING, name) for name in ("llama", "qwen3"))
FOREIGN = {
    "the same part again": ([Parts().part(1), Parts().part(1), Parts().part(3)], "file 2 of 3 is not part 2"),
    "another split": ([Parts().part(1), Parts(4).part(2), Parts().part(3)], "it is part 2 of 4"),
    "a whole file": ([Parts().part(1), File().build(), Parts().part(3)], "it is whole"),
    "another architecture": ([Parts().part(1), Parts().part(2, base=(QWEN,))], "its architecture is qwen3"),
    "another count of tensors": ([Parts().part(1), Parts().part(2, tensors=9)], "its model has 9 tensors"),
    "a tensor of another part": (
        [Parts().part(1), Parts().part(2, tensor_name="blk.0.attn_q.weight")],
        "its tensor blk.0.attn_q.weight is in file 1 too",
    ),
    "fewer tensors": ([Parts().part(number, tensors=4) for number in (1, 2, 3)], "have 3 tensors together"),
    "a projector": ([File().adding(pair("general.type", STRING, "mmproj"))], "of the kind 'mmproj'"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_part_is_refused(case: str) -> None:
    files, problem = FOREIGN[case]
    check = PartsCheck(max(3, len(files)) if len(files) > 1 else 1)
    with pytest.raises(MeshError) as refused:
        for data in files:
            check.add(header(data))
        check.metadata()
    assert problem in refused.value.message


def test_the_parts_that_repeat_the_architecture_pass() -> None:
    check = PartsCheck(2)
    for data in (Parts(2).part(1), Parts(2).part(2, base=(LLAMA,))):
        check.add(header(data))
    assert check.metadata().architecture == "llama"


def test_a_whole_file_and_a_first_part_need_an_architecture() -> None:
    for file in (File(pairs=()), File(pairs=(), extra=(pair("split.count", 2, 3),))):
        with pytest.raises(GgufError, match=r"general\.architecture"):
            header(file.build())


def test_names_of_tensors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.download.model_parts.MAX_TENSORS", 1)
    check = PartsCheck(2)
    check.add(header(Parts(2).part(1)))
    with pytest.raises(MeshError, match="more than 1 tensors"):
        check.add(header(Parts(2).part(2)))
    assert MAX_TENSORS == 16_384


@pytest.fixture
def objects(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "objects" / name for name in ("x", "y", "z")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(path.name)
    return paths


def test_links_lie_beside_each_other_under_the_names_of_llama_cpp(tmp_path: Path, objects: list[Path]) -> None:
    links = PartLinks(tmp_path / "parts")
    made = links.make("m1", objects[:2])
    assert [path.name for path in made] == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]
    assert made[0].parent == made[1].parent
    assert [path.read_text() for path in made] == ["x", "y"]
    before = made[0].lstat()
    assert links.make("m1", objects[:2]) == made
    assert made[0].lstat() == before, "links that are right are not touched"


def test_other_objects_replace_the_links_and_missing_links_are_made_again(tmp_path: Path, objects: list[Path]) -> None:
    links = PartLinks(tmp_path / "parts")
    made = links.make("m1", objects[:2])
    made[1].unlink()
    assert [path.read_text() for path in links.make("m1", objects[:2])] == ["x", "y"]
    other = links.make("m1", objects[1:])
    assert [path.read_text() for path in other] == ["y", "z"]
    assert list((tmp_path / "parts" / "m1").iterdir()) == [other[0].parent]
    links.make("m2", objects)
    assert links.models() == {"m1", "m2"}
    links.remove("m1")
    assert links.models() == {"m2"}
    assert all(path.exists() for path in objects)
