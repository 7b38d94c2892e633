"""An importance matrix is read as llama-quantize reads it, and variants are compared with the weights that it makes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
import pytest

pytest.importorskip("xllamacpp", reason="rows are quantised by the engine's library")

from llamesh.kit.gguf import TensorInfo
from services.quant.step import importance, tensor_rows
from tests.importance_matrices import write_matrix
from tests.quantised_models import write_source


def test_each_column_has_its_mean_square(tmp_path: Path) -> None:
    model = write_source(tmp_path / "m.gguf")
    write_matrix(tmp_path / "matrix.gguf", model, 1)
    found = importance.read(tmp_path / "matrix.gguf")
    shapes = {tensor.name: tensor.shape for tensor in gguf.GGUFReader(model).tensors}
    assert found
    for name, columns in found.items():
        assert columns.shape == (1, shapes[name][0])
        assert columns.dtype == numpy.float32
        # The stand-in writes sums of 0.5 to 50 for five uses.
        assert 0.1 <= columns.min() < columns.max() <= 10


def test_a_matrix_of_several_has_a_line_for_each_and_unused_ones_count_evenly(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "matrix.gguf", "llama")
    writer.add_tensor("experts.in_sum2", numpy.array([[2, 4], [8, 8]], numpy.float32))
    writer.add_tensor("experts.counts", numpy.array([[2], [0]], numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert importance.read(tmp_path / "matrix.gguf")["experts"].tolist() == [[1, 2], [1, 1]]


@pytest.mark.parametrize("seed", range(50))
def test_a_sample_lies_in_one_matrix_of_its_tensor(seed: int) -> None:
    info = TensorInfo(name="experts", shape=(64, 10, 3), type="F16", offset=0, size=64 * 10 * 3 * 2)
    matrix, first, count = tensor_rows.sample_of(info, seed)
    assert 0 <= matrix < 3
    assert matrix * 10 <= first <= first + count <= (matrix + 1) * 10


def test_the_importance_changes_the_weights_that_are_made() -> None:
    weights = numpy.random.default_rng(1).normal(0, 1, (4, 256)).astype(numpy.float32)
    even, odd = numpy.ones(256, numpy.float32), numpy.linspace(0.01, 100, 256, dtype=numpy.float32)
    made = [tensor_rows.quantised(weights, "IQ2_XXS", each).tobytes() for each in (even, odd, odd)]
    assert made[0] != made[1] == made[2]
