"""Writes a model that always answers with one sentence: a real GGUF file with a known answer for tests and benchmarks.

`python -m engine.sentence OUT.gguf` writes it in a moment. It is a llama model like any other (llama.cpp loads it by the same code path as
a model of 70 billion parameters), but its weights are chosen, not learned: embeddings are one-hot, every block adds zero, and the output
matrix maps each word to the next word. So it answers any prompt, chat or completion, with `SENTENCE` at any sensible temperature.
Invariant: a text never contains one of its words as a token, so a prompt cannot change the answer.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

SENTENCE = "The mesh is up, and every token you read came from llama.cpp through Envoy."
"""The answer of the model. No word occurs twice, and each has at least two letters: see the module."""
COMPLETION_TOKENS = len(SENTENCE.split()) + 1
"""Tokens of a complete answer: the words and the end token."""

_SPECIAL = ("<unk>", "<s>", "</s>")
_UNKNOWN, _BEGIN, _END = range(3)
_FIRST_WORD = len(_SPECIAL) + 256
_LOGIT = 4.0
"""Factor of the square root of the width: their product is the logit of the next word. All others are 0, so sampling cannot change it."""
_HEAD = 32
_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


@dataclass(frozen=True, slots=True)
class Size:
    """Size of the model, which sets the work per token. The answer is the same for all sizes."""

    blocks: int = 1
    width: int = 0
    """Numbers in a hidden state: a multiple of 32. 0: as few as the vocabulary allows."""
    feed_forward: int = 32
    """Numbers in a block's hidden layer: a multiple of 32."""


SMALL = Size()
"""For tests: half a megabyte, almost no computation."""
PREFILL = Size(blocks=8, width=1024, feed_forward=4096)
"""For benchmarks: as much computation for each prompt token as a model of 130 million parameters."""


def write(path: Path, *, context: int = 8192, size: Size = SMALL, sentence: str = SENTENCE) -> Path:
    """Write the model atomically, with a context of `context` tokens, and return the path. Needs the package `gguf`."""
    import gguf
    import numpy

    words = _pieces(sentence)
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    width = size.width or -(-len(tokens) // _HEAD) * _HEAD
    if width < len(tokens):
        raise ValueError(f"width {width} is less than the {len(tokens)} tokens of the vocabulary")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _describe(writer, size, context, width)
    _add_tokenizer(writer, tokens, len(words))

    embedding = numpy.zeros((len(tokens), width), numpy.float32)
    embedding[numpy.arange(len(tokens)), numpy.arange(len(tokens))] = 1
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", numpy.ones(width, numpy.float32))
    writer.add_tensor("output.weight", _next_word(len(tokens), width, len(words)))
    for block in range(size.blocks):
        for name, rows, columns in _block_shapes(size, width):
            # Q8_0: blocks of 32 numbers in 34 bytes; all bytes zero are all numbers zero.
            weights = numpy.zeros((rows, columns // 32 * 34), numpy.uint8)
            writer.add_tensor(f"blk.{block}.{name}.weight", weights, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", numpy.ones(width, numpy.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _pieces(sentence: str) -> list[str]:
    """Return the sentence as tokens. The first has no space before it, so that the answer begins with its first letter."""
    words = sentence.split()
    if not words or len(set(words)) != len(words) or any(len(word) < 2 for word in words):
        raise ValueError("the words of the sentence must differ and have two letters or more")
    return [words[0], *("\u2581" + word for word in words[1:])]


def _describe(writer: gguf.GGUFWriter, size: Size, context: int, width: int) -> None:  # type: ignore[name-defined] # noqa: F821
    writer.add_name("Sentence")
    writer.add_description("Says one sentence, whatever it is asked. Made for tests and benchmarks.")
    writer.add_license("Apache-2.0")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(size.blocks)
    writer.add_feed_forward_length(size.feed_forward)
    writer.add_head_count(width // _HEAD)
    writer.add_head_count_kv(1)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_file_type(7)


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: Sequence[str], words: int) -> None:  # type: ignore[name-defined] # noqa: F821
    unknown, normal, control, byte = 2, 1, 3, 6
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([unknown, control, control, *[byte] * 256, *[normal] * words])
    writer.add_unk_token_id(_UNKNOWN)
    writer.add_bos_token_id(_BEGIN)
    writer.add_eos_token_id(_END)
    writer.add_chat_template(_TEMPLATE)


def _next_word(tokens: int, width: int, words: int) -> numpy.ndarray:
    """Return the output matrix: row = next token, column = previous token."""
    import numpy

    output = numpy.zeros((tokens, width), numpy.float32)
    output[_FIRST_WORD, :_FIRST_WORD] = _LOGIT
    for word in range(_FIRST_WORD, _FIRST_WORD + words):
        following = word + 1 if word + 1 < tokens else _END
        output[following, word] = _LOGIT
    return output


def _block_shapes(size: Size, width: int) -> list[tuple[str, int, int]]:
    return [
        ("attn_q", width, width),
        ("attn_k", _HEAD, width),
        ("attn_v", _HEAD, width),
        ("attn_output", width, width),
        ("ffn_gate", size.feed_forward, width),
        ("ffn_up", size.feed_forward, width),
        ("ffn_down", width, size.feed_forward),
    ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.sentence", description=f"Write a model that says: {SENTENCE}"
    )
    parser.add_argument("path", type=Path, help="the GGUF file to write")
    parser.add_argument("--context", type=int, default=8192, help="tokens of context (default: %(default)s)")
    parser.add_argument("--prefill", action="store_true", help="the larger variant, whose prompts cost real work")
    given = parser.parse_args()
    write(given.path, context=given.context, size=PREFILL if given.prefill else SMALL)


if __name__ == "__main__":
    main()
