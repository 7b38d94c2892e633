"""Files written by the `gguf` package are accepted, and what they say is read back."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamesh.kit.gguf import GgufError, GgufMetadata, read_gguf
from llamesh.kit.gguf.description import Description
from llamesh.kit.gguf.types import FILE_TYPES, TENSOR_TYPES
from tests.unit.gguf_bytes import BASE_PAIRS, STRING, U32, File, array, pair, tensor


def read(path: Path) -> GgufMetadata:
    with path.open("rb") as file:
        return read_gguf(file, path.stat().st_size)


def read_bytes(data: bytes) -> GgufMetadata:
    return read_gguf(io.BytesIO(data), len(data))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def writer(path: Path) -> gguf.GGUFWriter:
    made = gguf.GGUFWriter(str(path), "llama")
    made.add_name("Tiny")
    made.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    made.add_context_length(4096)
    made.add_embedding_length(64)
    made.add_block_count(3)
    made.add_head_count(8)
    made.add_head_count_kv(2)
    made.add_token_list(["<unk>", "a", "ü"])
    made.add_token_scores([0.0, -1.0, -2.0])
    made.add_token_types([2, 1, 1])
    made.add_chat_template("{{ messages }}")
    return made


def write(made: gguf.GGUFWriter) -> None:
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def test_the_header_is_read_into_metadata(path: Path) -> None:
    made = writer(path)
    made.add_tensor("token_embd.weight", np.zeros((3, 64), np.float32))
    made.add_tensor("blk.0.attn_q.weight", np.zeros((64, 64), np.float16))
    write(made)
    assert read(path) == GgufMetadata(
        version=3,
        architecture="llama",
        kind="model",
        name="Tiny",
        parameter_count=3 * 64 + 64 * 64,
        quantisation="Q8_0",
        context_length=4096,
        embedding_length=64,
        layer_count=3,
        head_count=8,
        kv_head_count=2,
        key_length=8,
        value_length=8,
        sliding_window=0,
        vocabulary_size=3,
        has_chat_template=True,
        alignment=32,
        tensor_count=2,
        tensor_bytes=3 * 64 * 4 + 64 * 64 * 2,
        file_bytes=path.stat().st_size,
        split_index=0,
        split_count=0,
        split_tensor_count=0,
        projector_type="",
        projection_length=0,
        adapter_type="",
        description=Description(modalities=("MODALITY_TEXT",)),
    )


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_another_alignment(path: Path, alignment: int) -> None:
    made = writer(path)
    made.add_custom_alignment(alignment)
    made.add_tensor("a", np.zeros(3, np.float32))
    made.add_tensor("b", np.zeros(5, np.float32))
    write(made)
    assert read(path).alignment == alignment


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_quantised_tensors(path: Path, kind: str) -> None:
    made = writer(path)
    number = gguf.GGMLQuantizationType[kind]
    values = gguf.quants.quantize(np.ones((4, 256), np.float32), number)
    made.add_tensor("a", values, raw_dtype=number)
    write(made)
    metadata = read(path)
    assert metadata.parameter_count == 1024
    assert metadata.tensor_bytes == values.nbytes


def test_every_kind_of_value(path: Path) -> None:
    made = writer(path)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"):
        getattr(made, f"add_{name}")(f"x.{name}", 7)
    made.add_bool("x.yes", True)
    made.add_string("x.text", "ß" * 5000)
    made.add_array("x.numbers", list(range(100_000)))
    made.add_array("x.texts", [f"word {index}" for index in range(200_000)])
    made.add_array("x.truths", [True, False])
    made.add_tensor("a", np.zeros(8, np.float32))
    write(made)
    assert read(path).architecture == "llama"


def test_heads_that_differ_by_layer(path: Path) -> None:
    made = gguf.GGUFWriter(str(path), "lfm2")
    made.add_block_count(4)
    made.add_embedding_length(64)
    made.add_head_count([8, 8, 4, 8])
    made.add_head_count_kv([0, 2, 0, 4])
    made.add_key_length(24)
    made.add_value_length(16)
    made.add_sliding_window(512)
    made.add_tensor("a", np.zeros(8, np.float32))
    write(made)
    metadata = read(path)
    assert (metadata.head_count, metadata.kv_head_count) == (8, 2)
    assert (metadata.key_length, metadata.value_length, metadata.sliding_window) == (24, 16, 512)


def test_without_file_type_the_main_type_is_named(path: Path) -> None:
    made = gguf.GGUFWriter(str(path), "llama")
    made.add_tensor("a", np.zeros(8, np.float32))
    made.add_tensor("b", np.zeros(64, np.float16))
    write(made)
    assert read(path).quantisation == "F16"


def test_version_2_and_an_unpadded_last_tensor() -> None:
    data = replace(File(), version=2, tensors=(tensor("a", [3], 0, 0),), data=bytes(12)).build()
    assert read_bytes(data).version == 2


def test_heads_as_an_array_with_one_value_for_each_layer() -> None:
    heads = array("llama.attention.head_count_kv", U32, [1, 4])
    assert read_bytes(File().replacing("llama.attention.head_count_kv", heads)).kv_head_count == 3


def test_a_part_of_a_split_model_may_hold_no_tensor() -> None:
    split = (pair("split.no", U32, 0), pair("split.count", U32, 3))
    whole = replace(File(), tensors=(), data=b"", extra=split)
    metadata = read_bytes(whole.header())
    assert (metadata.split_index, metadata.split_count, metadata.quantisation) == (0, 3, "F32")


def test_an_adapter_says_that_it_is_one() -> None:
    assert read_bytes(File().adding(pair("general.type", STRING, "adapter"))).kind == "adapter"


def test_strings_across_the_edges_of_the_window() -> None:
    """The reader's window is one MiB; strings around its edges must be found where they are."""
    for length in range(1_048_500, 1_048_580, 7):
        filler = pair("x.filler", STRING, "f" * length)
        words = array("x.words", STRING, ["word"] * 1000)
        assert read_bytes(replace(File(), pairs=(filler, words, *BASE_PAIRS)).build()).name == "tiny"


def test_an_array_of_too_many_strings_is_refused_before_it_is_read() -> None:
    data = replace(File(), extra=(array("x", STRING, [""] * 10),)).build()
    forged = data.replace((10).to_bytes(8, "little") + bytes(80), (2_000_001).to_bytes(8, "little") + bytes(80))
    assert forged != data
    with pytest.raises(GgufError, match="more than 2000000 strings"):
        read_gguf(io.BytesIO(forged), 1 << 40)


def test_types_are_those_of_the_gguf_package() -> None:
    never_stored = {gguf.GGMLQuantizationType.Q8_1, gguf.GGMLQuantizationType.Q8_K}
    theirs = {
        int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if kind not in never_stored
    }
    assert {number: tuple(kind) for number, kind in TENSOR_TYPES.items() if number in theirs} == theirs
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert {names[number].removesuffix("_MOE") for number in FILE_TYPES} == set(FILE_TYPES.values())
