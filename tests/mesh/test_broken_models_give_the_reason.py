"""A model that llama.cpp cannot load says why in llama.cpp's telling words, and a chat template that it cannot use names the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import sentence
from tests.mesh.engines import engine


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return sentence.write(tmp_path_factory.mktemp("model") / "sentence.gguf").read_bytes()


@pytest.mark.parametrize(
    ("good", "broken", "words"),
    [
        ("llama.block_count", "llama.block_counx", "key not found in model: llama.block_count"),
        ("llama.context_length", "llama.context_lengtx", "key not found in model: llama.context_length"),
        ("tokenizer.ggml.model", "tokenizer.ggml.modex", "key not found in model: tokenizer.ggml.model"),
        ("tokenizer.ggml.tokens", "tokenizer.ggml.tokenx", "cannot find tokenizer vocab in model file"),
        ("output_norm.weight", "output_norx.weight", "tensor 'output_norm.weight' not found"),
        ("llama.attention.head_count", "llama.attention.head_counx", "tensor 'blk.0.attn_q.weight' has wrong shape"),
    ],
)
async def test_a_model_that_does_not_load_gives_the_reason(
    tmp_path: Path, whole: bytes, good: str, broken: str, words: str
) -> None:
    state = await failed(tmp_path, whole.replace(good.encode(), broken.encode()))
    assert state["reason"] == "BAD_MODEL"
    assert words in state["message"]
    assert "failed to load model" not in state["message"]


@pytest.mark.parametrize(
    ("good", "broken", "words"),
    [
        ("{% endfor %}", "{% endfoo %}", "Unknown statement: endfoo"),
        ("{{ m['role'] }}", "{{ m['role') }}", "Unexpected token"),
        ("{{ m['role'] }}", "{{ nope(m)() }}", "Callee is not a function"),
    ],
)
async def test_a_broken_chat_template_names_the_remedy(
    tmp_path: Path, whole: bytes, good: str, broken: str, words: str
) -> None:
    model = whole.replace(good.encode(), broken.encode())
    state = await failed(tmp_path, model)
    assert state["reason"] == "BAD_MODEL"
    assert words in state["message"]
    assert "--chat-template chatml" in state["message"]
    assert "--no-jinja" not in state["message"]  # it does not help
    (tmp_path / "broken.gguf").write_bytes(model)
    async with engine(tmp_path / "f", tmp_path / "broken.gguf", parameters={"chat_template": "chatml"}) as running:
        await running.until("ready")


async def failed(tmp_path: Path, model: bytes) -> dict[str, str]:
    """The state of an engine that was started with such a file."""
    file = tmp_path / "broken.gguf"
    file.write_bytes(model)
    async with engine(tmp_path / "e", file) as running:
        await running.ended()
        return running.state
