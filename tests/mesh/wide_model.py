"""A model for tests of what a request costs: a vocabulary as large as a real model's, on an inference that costs nothing.

Grammars, samplers and probabilities cost in proportion to the vocabulary, and a byte-pair tokenizer in proportion to a text; the sentence
model has 272 tokens and none of that. This one has `TOKENS` tokens, a chat template that knows tools, and weights that are all zero: every
token is equally likely, so that an answer goes on until its length is reached and a grammar is asked about the whole vocabulary each time.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

TOKENS = 131_072
"""As many as models of 2025 have: 128,256 (Llama 3) to 262,144 (Gemma 3)."""
CONTEXT = 131_072
_WIDTH = 32
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nCall one as <tool_call>\\n{"name": <name>, "arguments": <arguments>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def write(path: Path) -> Path:
    """Write the model, in one step: 9 MB, half a second. Needs the package `gguf`."""
    import gguf
    import numpy

    tokens, merges = _vocabulary()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    writer = gguf.GGUFWriter(unfinished, "llama")
    writer.add_name("Wide")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH)
    writer.add_file_type(7)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(_SPECIAL) + [1] * (len(tokens) - len(_SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)

    def zeros(name: str, rows: int) -> None:
        # Q8_0: blocks of 32 numbers in 34 bytes; all bytes zero are all numbers zero.
        weights = numpy.zeros((rows, _WIDTH // 32 * 34), numpy.uint8)
        writer.add_tensor(name, weights, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    zeros("token_embd.weight", len(tokens))
    zeros("output.weight", len(tokens))
    writer.add_tensor("output_norm.weight", numpy.ones(_WIDTH, numpy.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        zeros(f"blk.0.{name}.weight", _WIDTH)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", numpy.ones(_WIDTH, numpy.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and the merges that make them: stretches of one character, and syllables, half of them with a space before."""
    tokens = [*_SPECIAL, *_byte_letters()]
    known = set(tokens)
    merges: list[str] = []

    def merge(left: str, right: str) -> str:
        if left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append(f"{left} {right}")
        return left + right

    for letter in "\u0120\u010a-=.aA1":
        piece = letter
        while len(piece) <= 32:
            piece = merge(piece, piece)
    letters = "etaoinshrdlucmwfgypbvk"
    pairs = [merge(left, right) for left in letters for right in letters]
    spaced = [merge("\u0120", letter) for letter in letters]
    spaced_pairs = [merge(left, right) for left in spaced for right in letters]
    triples = [merge(left, right) for left in pairs for right in letters]
    spaced_triples = [merge(left, right) for left in spaced_pairs for right in letters]
    chance = random.Random(0)
    while len(tokens) < TOKENS:
        merge(chance.choice(chance.choice((pairs, triples, spaced_pairs, spaced_triples))), chance.choice(triples))
    return tokens, merges


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-pair vocabulary (GPT-2's): itself if it can be seen, else one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(unseen)) for byte in range(256)]
