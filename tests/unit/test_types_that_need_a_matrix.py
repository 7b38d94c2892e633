"""Which types need an importance matrix, against llama.cpp's own quantiser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import sentence
from llamesh.kit.errors import MeshError, Reason
from services.quant import submission
from services.quant.quantisations import QUANTISATIONS, QUANTISED

EACH_TYPE = """
import json, pathlib, sys
from services.quant.step.quantiser import main
source, target, codes, *types = sys.argv[1:]
pathlib.Path(codes).write_text(json.dumps({each: main([source, target, each, "1"]) for each in types}))
"""
"""A program that makes each type of a model. It is one process for all, because each takes long to start."""


def test_llama_cpp_refuses_without_a_matrix_what_the_table_says(tmp_path: Path) -> None:
    pytest.importorskip("cyllama", reason="extra quant")
    pytest.importorskip("xllamacpp", reason="models are written with the engine's library")
    from tests.quantised_models import write_source

    source = write_source(tmp_path / "source.gguf", size=sentence.Size(width=512, feed_forward=256))
    words = [str(source), str(tmp_path / "made.gguf"), str(tmp_path / "codes.json"), *QUANTISED]
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_QUANTIZE_BIN"}
    subprocess.run([sys.executable, "-c", EACH_TYPE, *words], check=True, capture_output=True, env=environment)
    refused = {name for name, code in json.loads((tmp_path / "codes.json").read_text("utf-8")).items() if code}
    assert refused == {name for name in QUANTISED if QUANTISATIONS[name].needs_matrix}


@pytest.mark.parametrize("of_type", ["IQ3_XS", "IQ3_XXS", "Q2_K_S"])
def test_the_refusal_of_a_type_without_a_matrix_says_what_to_do(of_type: str) -> None:
    with pytest.raises(
        MeshError, match=f"{of_type} needs an importance matrix: set importance_matrix, or use"
    ) as refused:
        submission.check_types([of_type], importance_matrix=False)
    assert refused.value.reason == Reason.ERROR_REASON_QUANT_REFUSED
    assert refused.value.metadata["rule"] == "matrix"
    submission.check_types([of_type], importance_matrix=True)
    for named in ("Q2_K", "IQ3_S"):
        assert named in refused.value.message
        submission.check_types([named], importance_matrix=False)
