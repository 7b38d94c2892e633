"""config.json of a checkpoint is read without trust: its numbers have their ranges, and what cannot be converted is said."""

from __future__ import annotations

import math
from typing import Any

import pytest

from services.quant.checkpoint_config import CheckpointRefusedError, read_config, stored_type

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
    "vocab_size": 1000,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_what_a_checkpoint_leaves_out_has_the_values_of_its_format() -> None:
    found = read_config(LLAMA)
    assert (found.architecture, found.kv_heads, found.head_width, found.rope_base) == ("llama", 8, 8, 10_000.0)
    assert (found.tied, stored_type(LLAMA), found.rope.kind) == (False, "BF16", "default")


def test_numbers_that_are_the_defaults_of_yarn_are_taken() -> None:
    config = LLAMA | {
        "rope_scaling": YARN | {"beta_fast": 32, "beta_slow": 1.0, "attention_factor": None, "huge": 10**400}
    }
    assert read_config(config).rope.numbers["factor"] == 4


def test_a_message_shows_no_control_characters() -> None:
    with pytest.raises(CheckpointRefusedError) as caught:
        read_config(LLAMA | {"architectures": ["\x1b[2JLlama" * 100]})
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


NESTED: Any = "silu"
for _ in range(100_000):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": [NESTED]}, "names no architecture"),
        ({"hidden_act": NESTED}, "its activation a list is not that of"),
        ({"hidden_act": {"name": NESTED}}, "its activation an object is not that of"),
        ({"is_causal": NESTED}, "is_causal a list in its config.json"),
        ({"rope_scaling": {"type": NESTED}}, "its scaling of positions a list is not converted"),
        ({"rope_scaling": {"type": "linear", "factor": NESTED}}, "factor in its config.json is no positive number"),
        ({"hidden_size": NESTED}, "hidden_size in its config.json is no whole number"),
    ],
)
def test_a_value_that_is_no_text_is_named_and_not_written_out(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointRefusedError, match=said):
        read_config(LLAMA | change)


def test_a_type_that_is_no_text_counts_as_left_out() -> None:
    assert stored_type({"torch_dtype": NESTED}) == stored_type({"dtype": {"a": 1}}) == "F16"


def test_null_counts_as_left_out() -> None:
    found = read_config(LLAMA | {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None})
    assert (found.head_width, found.kv_heads) == (8, 8)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500_000.0, "rope_scaling": LLAMA_3},
        {"rope_parameters": LLAMA_3 | {"rope_theta": 500_000.0}},
        {"rope_parameters": {"full_attention": LLAMA_3 | {"rope_theta": 500_000.0}}},
        {
            "rope_theta": 500_000,
            "rope_scaling": {key: value for key, value in LLAMA_3.items() if key != "rope_type"} | {"type": "llama3"},
        },
    ],
    ids=["rope_scaling", "rope_parameters", "full_attention", "type"],
)
def test_positions_are_read_in_each_form_in_which_they_are_written(rope: dict[str, Any]) -> None:
    found = read_config(LLAMA | rope)
    assert (found.rope_base, found.rope.kind, found.rope.numbers["factor"]) == (500_000.0, "llama3", 8.0)


def test_the_newer_name_of_the_type_counts() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "torch_dtype"}
    assert stored_type(config | {"dtype": "float32"}) == "F32"


@pytest.mark.parametrize(
    ("change", "rule", "said"),
    [
        ({"architectures": ["LlamaForCausalML"]}, "architecture", "is not converted; converted are LlamaForCausalLM"),
        ({"architectures": ["GptOssForCausalLM"]}, "architecture", "converted are LlamaForCausalLM"),
        ({"architectures": ["NewForCausalLM"], "auto_map": {"AutoModel": "x.Y"}}, "code", "which is never run"),
        ({"architectures": []}, "config", "names no architecture"),
        ({"architectures": "LlamaForCausalLM"}, "config", "names no architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised", "quantised already"),
        ({"hidden_act": "relu"}, "config", "activation relu"),
        ({"hidden_act": "x\x1b" * 1000}, "config", "activation xxxx"),
        ({"use_sliding_window": True}, "config", "use_sliding_window True"),
        ({"is_causal": False}, "config", "is_causal False"),
        ({"partial_rotary_factor": 0.5}, "config", "partial_rotary_factor 0.5"),
        ({"head_dim": 3}, "config", "head_dim is odd"),
        ({"head_dim": 1026}, "config", "head_dim in its config.json is no whole number from 1 to 1024"),
        ({"hidden_size": 8 * 2048}, "config", "head_dim in its config.json is no whole number from 1 to 1024"),
        ({"head_dim": 1024, "num_attention_heads": 1024}, "config", "more than 262144 rows"),
        ({"num_key_value_heads": 1 << 30}, "config", "num_key_value_heads in its config.json is no whole number"),
        ({"num_attention_heads": 2048, "head_dim": 2}, "config", "num_attention_heads"),
        ({"vocab_size": 1 << 20}, "config", "vocab_size"),
        ({"max_position_embeddings": 1 << 31}, "config", "max_position_embeddings"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 10**11}}, "config", "from 1 to 2147483647"),
        ({"rope_scaling": LLAMA_3 | {"original_max_position_embeddings": 0.5}}, "config", "from 1 to 2147483647"),
        ({"rope_scaling": {"type": "longrope"}}, "config", "longrope"),
        ({"rope_scaling": "yarn"}, "config", "another form"),
        ({"rope_parameters": {"sliding": {"rope_theta": 1.0}}}, "config", "another form"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "config", "rope_scaling.factor"),
        ({"architectures": ["Qwen2ForCausalLM"], "rope_scaling": LLAMA_3}, "config", "llama3 is not one of Qwen2"),
        (
            {"rope_scaling": YARN | {"attention_factor": 1.2}},
            "config",
            "rope_scaling.attention_factor",
        ),
        ({"rope_scaling": YARN | {"beta_fast": 16}}, "config", "rope_scaling.beta_fast"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "config", "rope_scaling.original_max_position_embeddings"),
        ({"rope_scaling": LLAMA_3 | {"high_freq_factor": 1.0}}, "config", "not above low_freq_factor"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(change: dict[str, Any], rule: str, said: str) -> None:
    with pytest.raises(CheckpointRefusedError) as caught:
        read_config(LLAMA | change)
    assert caught.value.rule == rule
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"]
)
@pytest.mark.parametrize("value", [0, -1, 1 << 40, 1.5, "64", True, None, [64], math.nan])
def test_a_number_out_of_its_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(CheckpointRefusedError, match=name):
        read_config(LLAMA | {name: value})


@pytest.mark.parametrize("value", [0, -1e-5, math.nan, math.inf, "1e-5", True])
def test_a_wrong_epsilon_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointRefusedError, match="rms_norm_eps"):
        read_config(LLAMA | {"rms_norm_eps": value})


def test_more_heads_than_width_are_refused() -> None:
    with pytest.raises(CheckpointRefusedError, match="head_dim"):
        read_config(LLAMA | {"num_attention_heads": 65})


@pytest.mark.parametrize("document", [None, [], "{}", 7, {}])
def test_another_document_is_no_configuration(document: Any) -> None:
    with pytest.raises(CheckpointRefusedError, match="no architecture"):
        read_config(document)
