"""A checkpoint becomes a GGUF file with the same weights, in llama.cpp's names and order of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from services.quant.checkpoint_config import read_config
from services.quant.step import llama_tensors
from services.quant.step.llama_tensors import TensorsRefusedError, converted, interleaved, rope_factors
from services.quant.step.safetensors_files import StoredTensor, read_checkpoint_tensors
from tests.checkpoints import write_safetensors
from tests.unit.test_checkpoint_config import LLAMA, LLAMA_3

SMALL = LLAMA | {
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 5,
}


BIASES = {f"model.layers.0.self_attn.{name}_proj.bias": (8,) for name in "qkv"}
NORMS = {f"model.layers.0.self_attn.{name}_norm.weight": (4,) for name in "qk"}


def _shapes(config: dict[str, Any] = SMALL) -> dict[str, tuple[int, ...]]:
    found = read_config(config)
    rows, kv_rows = found.heads * found.head_width, found.kv_heads * found.head_width
    of_layer = {
        "input_layernorm": (found.width,),
        "self_attn.q_proj": (rows, found.width),
        "self_attn.k_proj": (kv_rows, found.width),
        "self_attn.v_proj": (kv_rows, found.width),
        "self_attn.o_proj": (found.width, rows),
        "post_attention_layernorm": (found.width,),
        "mlp.gate_proj": (found.feed_forward, found.width),
        "mlp.up_proj": (found.feed_forward, found.width),
        "mlp.down_proj": (found.width, found.feed_forward),
    }
    shapes = {f"model.layers.{n}.{name}.weight": shape for n in range(found.layers) for name, shape in of_layer.items()}
    outer = {"model.embed_tokens.weight": (found.vocabulary, found.width), "model.norm.weight": (found.width,)}
    return shapes | outer | {"lm_head.weight": (found.vocabulary, found.width)}


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., dict[str, StoredTensor]]:
    """`stored(shapes, type)`: the tensors of a file with random weights."""

    def write(shapes: dict[str, tuple[int, ...]], of_type: str = "BF16") -> dict[str, StoredTensor]:
        random = numpy.random.default_rng(1)
        weights = {name: random.normal(0, 1, shape).astype(numpy.float32) for name, shape in shapes.items()}
        return read_checkpoint_tensors([write_safetensors(tmp_path / "model.safetensors", weights, of_type)])

    return write


@pytest.mark.parametrize("of_type", ["BF16", "F16", "F32"])
def test_matrices_keep_their_bytes_and_vectors_become_f32(stored: Callable[..., Any], of_type: str) -> None:
    sources = stored(_shapes(), of_type)
    found = {tensor.name: tensor for tensor in converted(read_config(SMALL), sources)}
    assert len(found) == len(sources)
    matrix, vector = found["blk.0.ffn_down.weight"], found["blk.0.attn_norm.weight"]
    assert (matrix.type.name, vector.type.name) == (of_type, "F32")
    assert matrix.load().tobytes() == sources["model.layers.0.mlp.down_proj.weight"].mapped().tobytes()
    for tensor in found.values():
        assert (tensor.load().shape, tensor.load().nbytes) == (tensor.shape, tensor.byte_count)
    plain = numpy.array(sources["model.layers.0.input_layernorm.weight"].mapped())
    if of_type == "BF16":
        plain = (plain.astype(numpy.uint32) << 16).view(numpy.float32)
    assert vector.load().tolist() == plain.astype(numpy.float32).tolist()


def test_rows_of_each_head_are_interleaved() -> None:
    rows = numpy.arange(8).reshape(8, 1)
    assert interleaved(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(rows, 1).ravel().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(("architecture", "changed"), [("LlamaForCausalLM", True), ("Qwen2ForCausalLM", False)])
def test_only_attention_of_llama_is_put_into_another_order(
    stored: Callable[..., Any], architecture: str, changed: bool
) -> None:
    config = SMALL | {"architectures": [architecture]}
    sources = stored(_shapes() | BIASES, "F32")
    found = {tensor.name: tensor for tensor in converted(read_config(config), sources)}
    for name, moved in (("q", changed), ("k", changed), ("v", False)):
        for kind in ("weight", "bias"):
            before = sources[f"model.layers.0.self_attn.{name}_proj.{kind}"].mapped()
            after = found[f"blk.0.attn_{name}.{kind}"].load()
            assert sorted(after.ravel()) == sorted(before.ravel())
            assert bool((after != before).any()) is moved


def test_norms_of_heads_are_taken_for_qwen_3(stored: Callable[..., Any]) -> None:
    config = SMALL | {"architectures": ["Qwen3ForCausalLM"]}
    names = {tensor.name for tensor in converted(read_config(config), stored(_shapes() | NORMS))}
    assert {"blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"} <= names


@pytest.mark.parametrize(
    ("architecture", "more", "missing"),
    [
        ("Qwen2ForCausalLM", BIASES, r"blk\.0\.attn_q\.bias"),
        ("Qwen3ForCausalLM", NORMS, r"blk\.0\.attn_q_norm\.weight"),
    ],
)
def test_what_only_this_architecture_has_is_needed(
    stored: Callable[..., Any], architecture: str, more: dict[str, tuple[int, ...]], missing: str
) -> None:
    config = read_config(SMALL | {"architectures": [architecture]})
    assert converted(config, stored(_shapes() | more))
    with pytest.raises(TensorsRefusedError, match=f"the tensor {missing} is missing"):
        converted(config, stored(_shapes()))


def test_an_output_that_is_tied_is_left_out(stored: Callable[..., Any]) -> None:
    names = {tensor.name for tensor in converted(read_config(SMALL | {"tie_word_embeddings": True}), stored(_shapes()))}
    assert "output.weight" not in names
    assert "token_embd.weight" in names


def test_buffers_that_are_no_weights_are_left_out(stored: Callable[..., Any]) -> None:
    found = converted(read_config(SMALL), stored(_shapes() | {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)}))
    assert len(found) == len(_shapes())


@pytest.mark.parametrize("missing", sorted(_shapes()))
def test_a_missing_tensor_is_named(stored: Callable[..., Any], missing: str) -> None:
    shapes = _shapes()
    del shapes[missing]
    with pytest.raises(TensorsRefusedError, match=r"^the tensor [\w.]+ is missing$"):
        converted(read_config(SMALL), stored(shapes))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("model.layers.0.mlp.down_proj.weight", (8, 7), r"blk\.0\.ffn_down\.weight has the shape \[8, 7\]"),
        ("model.layers.0.self_attn.q_proj.weight", (9, 8), "has 9 rows, not 8"),
        ("model.embed_tokens.weight", (4, 8), r"by config\.json it has \[5, 8\]"),
        ("model.layers.1.mlp.down_proj.weight", (8, 6), "is not one of the architecture"),
        ("vision.patch.weight", (8, 8), "is not one of the architecture"),
        ("layers.0.mlp.up_proj.weight", (6, 8), "is not one of the architecture"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    stored: Callable[..., Any], name: str, shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(TensorsRefusedError, match=said):
        converted(read_config(SMALL), stored(_shapes() | {name: shape}))


def test_the_factors_of_a_rotation_are_not_made_for_weights_of_another_shape(
    stored: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number follows from config.json alone, which nothing else has proved."""
    made: list[int] = []
    monkeypatch.setattr(llama_tensors, "rope_factors", lambda config: made.append(config.head_width))
    config = read_config(SMALL | {"architectures": ["LlamaForCausalLM"], "head_dim": 1024, "rope_scaling": LLAMA_3})
    shapes = {name: shape for name, shape in _shapes().items() if "q_proj" not in name and "k_proj" not in name}
    with pytest.raises(TensorsRefusedError):
        converted(config, stored(shapes))
    assert made == []


def test_the_scaling_of_llama_3_divides_low_frequencies_only() -> None:
    config = read_config(LLAMA | {"head_dim": 128, "rope_theta": 500_000.0, "rope_scaling": LLAMA_3})
    factors = rope_factors(config)
    assert len(factors) == 64
    assert (factors[0], factors[-1]) == (1.0, 8.0)
    assert factors == sorted(factors)
    between = [at for at, factor in enumerate(factors) if 1 < factor < 8]
    for at in between:
        wave = 2 * math.pi * 500_000 ** (2 * at / 128)
        assert 8192 / 4 < wave < 8192
    assert between
    assert rope_factors(read_config(LLAMA)) == []
