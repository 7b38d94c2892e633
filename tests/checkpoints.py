"""Checkpoints for tests: a folder in the format of Hugging Face, written from a GGUF file of the Llama architecture.

It is the way back of a conversion, written by itself: the names, the order of rows and the tokenizer of the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy

_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_BESIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def write_checkpoint(source: Path, folder: Path, *, of_type: str = "F16", parts: int = 1) -> Path:
    """Write the checkpoint of a model, its weights in `parts` files. `of_type` is that of its weights: F16, BF16 or F32."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields, of_type, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(fields)))
    (folder / "tokenizer_config.json").write_text(json.dumps(_special(fields)))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        weights = numpy.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), numpy.float32)
        steps = tensor.name.split(".")
        if steps[0] == "blk":
            if steps[2] in heads:
                weights = _in_halves(weights, heads[steps[2]])
            tensors[f"model.layers.{steps[1]}.{_NAMES[steps[2]]}.weight"] = weights
        else:
            tensors[f"{_BESIDE[steps[0]]}.weight"] = weights
    names = sorted(tensors)
    for number in range(parts):
        part = {name: tensors[name] for name in names[number::parts]}
        name = f"model-{number + 1:05d}-of-{parts:05d}.safetensors" if parts > 1 else "model.safetensors"
        write_safetensors(folder / name, part, of_type)
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, Any], of_type: str) -> Path:
    """Write a safetensors file with these tensors in one type."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, weights in tensors.items():
        begin = len(data)
        data += stored(weights, of_type).tobytes()
        header[name] = {"dtype": of_type, "shape": list(weights.shape), "data_offsets": [begin, len(data)]}
    return write_raw_safetensors(path, header, bytes(data))


def write_raw_safetensors(path: Path, header: Any, data: bytes) -> Path:
    """Write a safetensors file with this header, right or wrong."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def stored(weights: Any, of_type: str) -> Any:
    """Return weights as a file of this type has them; BF16 as 16-bit whole numbers, cut off."""
    weights = numpy.ascontiguousarray(weights, numpy.float32)
    if of_type == "BF16":
        return (weights.view(numpy.uint32) >> 16).astype("<u2")
    return weights.astype({"F16": "<f2", "F32": "<f4"}[of_type])


def _in_halves(rows: Any, heads: int) -> Any:
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _config(fields: Mapping[str, Any], of_type: str, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 8),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10_000)),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "torch_dtype": {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[of_type],
    }


def _tokenizer(fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    added = [
        {"id": at, "content": text, "special": kind != _USER_DEFINED}
        for at, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    model = {
        "type": "BPE",
        "vocab": {text: at for at, text in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in fields.get("tokenizer.ggml.merges", [])],
    }
    if fields["tokenizer.ggml.model"] == "llama":
        model |= {"byte_fallback": True, "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]]}
        normalizer = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        }
        return {"added_tokens": added, "normalizer": normalizer, "pre_tokenizer": None, "model": model}
    digits = {"type": "Digits", "individual_digits": True}
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    cut = {"type": "Sequence", "pretokenizers": [digits, words]}
    return {"added_tokens": added, "normalizer": None, "pre_tokenizer": cut, "model": model}


def _special(fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    named = {
        f"{name}_token": tokens[fields[field]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (field := f"tokenizer.ggml.{key}_token_id") in fields
    }
    added = {
        f"add_{name}_token": fields[field]
        for name in ("bos", "eos")
        if (field := f"tokenizer.ggml.add_{name}_token") in fields
    }
    return named | added | {"chat_template": fields.get("tokenizer.chat_template")}
