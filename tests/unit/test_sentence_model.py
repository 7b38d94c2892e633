"""The sentence model's file is small, the same every time, and refuses a sentence that it could not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import sentence


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = sentence.write(tmp_path / "a.gguf"), sentence.write(tmp_path / "b.gguf")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 2_000_000
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_its_metadata_can_be_read_back(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(sentence.write(tmp_path / "a.gguf", context=1234, size=sentence.Size(blocks=2, width=512)))
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.context_length"].contents() == 1234
    assert reader.fields["llama.block_count"].contents() == 2
    assert reader.fields["llama.embedding_length"].contents() == 512


@pytest.mark.parametrize("words", ["the cat the dog", "I am", ""])
def test_a_sentence_that_it_could_not_say_is_refused(tmp_path: Path, words: str) -> None:
    with pytest.raises(ValueError, match="words"):
        sentence.write(tmp_path / "a.gguf", sentence=words)
    assert list(tmp_path.iterdir()) == []


def test_a_width_below_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="width 128"):
        sentence.write(tmp_path / "a.gguf", size=sentence.Size(width=128))
