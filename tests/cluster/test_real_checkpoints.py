"""A real model as a checkpoint: its conversion gives the file that it came from, and llama.cpp predicts the same text with both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import pytest

from engine.demo import demo_model
from llamesh.kit.config import Settings
from services.quant.step import measurement
from services.quant.step.convert import convert
from services.quant.workspace import JobSpec, Workspace
from tests.checkpoints import write_checkpoint
from tests.quantised_models import rewrite

pytestmark = pytest.mark.cluster
pytest.importorskip("cyllama", reason="the package cyllama is not installed: extra quant")
SPEC = JobSpec(
    "job_1", "Smol", "", "", allow_requantize=False, pure=False, importance_matrix=False, max_kl_divergence=0
)
_OF_THE_FILE = {"general.name", "general.quantization_version", "general.type"}
"""Fields that say how a file was made."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in F16."""
    folder = tmp_path_factory.mktemp("smol")
    source = folder / "smol-f16.gguf"
    rewrite(Path(demo_model(folder / "cache").path), source, "F16")
    return source


def _fields(path: Path) -> dict[str, Any]:
    return {field.name: field.contents() for field in gguf.GGUFReader(path).fields.values()}


@pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
@pytest.mark.parametrize(("of_type", "parts"), [("F16", 3), ("F32", 1)])
def test_a_conversion_gives_the_file_that_the_checkpoint_came_from(
    settings: Settings, model: Path, tmp_path: Path, of_type: str, parts: int
) -> None:
    workspace = Workspace(tmp_path, SPEC.job_id)
    workspace.prepare(dataclasses.replace(SPEC, source="file:///smol"))
    write_checkpoint(model, workspace.checkpoint, of_type=of_type, parts=parts)
    assert convert(workspace, settings)["quantisation"] == of_type
    (made,) = workspace.sources

    before, after = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (model, made))
    assert before.keys() == after.keys()
    assert len(after) == 272
    for name, tensor in after.items():
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert (weights == gguf.quants.dequantize(before[name].data, before[name].tensor_type)).all(), name
    was, became = _fields(model), _fields(made)
    for name in {name for name in was if name.startswith(("llama.", "tokenizer."))} - _OF_THE_FILE:
        assert became[name] == was[name], name

    tokens, predicted = measurement.predictions(model)
    again, same = measurement.cached_predictions(made, workspace.measured_source)
    assert list(again) == list(tokens)
    found = measurement.compared(predicted, same, tokens)
    assert found.kl_divergence < 1e-4
    assert found.source_perplexity < 30, "it is the model that it was, not one of mixed up rows"
    assert not workspace.checkpoint.exists()
