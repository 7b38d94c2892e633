"""A header describes its model to people: license, tags, modalities and abilities of the chat template, all bounded."""

from __future__ import annotations

import io

import pytest

from llamesh.kit.gguf import read_gguf
from llamesh.kit.gguf.description import MAX_LICENSE, MAX_TAG, MAX_TAGS, Description
from llamesh.v1.model_pb2 import GgufMetadata
from services.download.messages import gguf_fields
from tests.unit.gguf_bytes import BASE_PAIRS, STRING, U32, File, array, pair


def described(*extra: bytes, pairs: tuple[bytes, ...] = BASE_PAIRS) -> Description:
    data = File(pairs=pairs, extra=extra).build()
    return read_gguf(io.BytesIO(data), len(data)).description


def with_template(template: str) -> Description:
    return described(pair("tokenizer.chat_template", STRING, template), pairs=BASE_PAIRS[:-1])


def test_license_and_tags_are_read() -> None:
    found = described(
        pair("general.license", STRING, "apache-2.0"),
        array("general.tags", STRING, ["text-generation", "llama", "llama", ""]),
        array("general.languages", STRING, ["en"]),
    )
    assert (found.license, found.tags) == ("apache-2.0", ("text-generation", "llama"))


def test_a_file_that_says_nothing_is_described_by_its_architecture() -> None:
    assert described() == Description(modalities=("MODALITY_TEXT",))


def test_long_descriptions_are_cut_and_the_rest_of_the_header_is_read() -> None:
    found = described(
        pair("general.license", STRING, "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 100_000),
        array("general.tags", STRING, [f"{index:03}" + "x" * 1_000 for index in range(10_000)]),
        pair("llama.pooling_type", U32, 4),
    )
    assert len(found.license.encode()) == MAX_LICENSE
    assert [tag[:3] for tag in found.tags] == [f"{index:03}" for index in range(MAX_TAGS)]
    assert {len(tag) for tag in found.tags} == {MAX_TAG}
    assert found.modalities == ("MODALITY_RERANKING",)


def test_unprintable_and_mistyped_descriptions_make_no_file_invalid() -> None:
    found = described(pair("general.license", STRING, b"\x1b[31mmit\xff\0"), array("general.tags", U32, [1, 2]))
    assert (found.license, found.tags) == ("[31mmit", ())
    assert described(pair("general.license", U32, 7), pair("general.tags", STRING, "a")).license == ""


@pytest.mark.parametrize(
    ("architecture", "pooling", "modality"),
    [
        ("llama", 0, "TEXT"),
        ("llama", 1, "EMBEDDING"),
        ("qwen3", 3, "EMBEDDING"),
        ("bert", 0, "EMBEDDING"),
        ("bert", 4, "RERANKING"),
        ("clip", 0, "VISION_PROJECTOR"),
    ],
)
def test_modalities_follow_from_architecture_and_pooling(architecture: str, pooling: int, modality: str) -> None:
    pairs = (pair("general.architecture", STRING, architecture),)
    found = described(pair(f"{architecture}.pooling_type", U32, pooling), pairs=pairs)
    assert found.modalities == (f"MODALITY_{modality}",)


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("{{ messages }}", False, False),
        ("{%- if tools %}{{ tools | tojson }}{%- endif %}", True, False),
        ("{{ toolset }} {{ messages }}", False, False),
        ("{{ content.split('</think>')[-1] }}", False, True),
        ("{%- if enable_thinking is defined and tools %}", True, True),
    ],
)
def test_abilities_of_the_chat_template(template: str, tools: bool, reasoning: bool) -> None:
    found = with_template(template)
    assert (found.chat_template_has_tools, found.chat_template_has_reasoning) == (tools, reasoning)


def test_the_contract_has_every_field_of_the_description() -> None:
    data = File(extra=(array("general.tags", STRING, ["a"]), pair("general.license", STRING, "mit"))).build()
    message = GgufMetadata(**gguf_fields(read_gguf(io.BytesIO(data), len(data))))
    assert (message.license, list(message.tags), len(message.modalities)) == ("mit", ["a"], 1)
