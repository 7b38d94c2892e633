"""Small models of any type that Python can quantise, and a stand-in for `llama-quantize` that makes them.

`python -m tests.quantised_models [OPTIONS] SOURCE TARGET TYPE THREADS` takes the arguments of `llama-quantize`, reports its progress in the
same form, and uses an importance matrix as llama.cpp does. Its fault is in the file that QUANTISER_FAULT names, read at each start.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy

from engine import sentence
from llamesh.kit.gguf.types import FILE_TYPES
from services.quant.quantisations import QUANTISATIONS
from services.quant.step import importance, tensor_rows

ROOT = Path(__file__).resolve().parent.parent
_HEADER = ("general.architecture", "general.file_type", "general.quantization_version")


def write_source(path: Path, seed: int = 1, size: sentence.Size = sentence.SMALL) -> Path:
    """Write a model in F16 whose weights are small random numbers."""
    plain = path.with_suffix(".plain")
    sentence.write(plain, size=size)
    random = numpy.random.default_rng(seed)
    rewrite(plain, path, "F16", lambda _, weights: random.normal(0, 0.05, weights.shape).astype(numpy.float32))
    plain.unlink()
    return path


def rewrite(
    source: Path,
    target: Path,
    of_type: str,
    change: Callable[[str, Any], Any] = lambda _, weights: weights,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    matrix: Path | None = None,
) -> None:
    """Write a model with matrices of another type, their weights changed before. `matrix` is an importance matrix to use."""
    important = importance.read(matrix) if matrix else {}
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in _HEADER:
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, element)
    writer.add_file_type({name: number for number, name in FILE_TYPES.items()}[of_type])
    wanted = gguf.GGMLQuantizationType[of_type]
    for number, tensor in enumerate(reader.tensors, 1):
        weights = numpy.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32)
        if weights.ndim > 1:
            weights = change(tensor.name, weights)
            tensor_type = wanted
            if tensor.name in important:
                made = tensor_rows.quantised(weights, of_type, important[tensor.name][0])
            else:
                # As llama.cpp does, a tensor without importance gets another type if the wanted one needs it.
                if of_type in QUANTISATIONS and QUANTISATIONS[of_type].needs_matrix:
                    tensor_type = gguf.GGMLQuantizationType.Q8_0
                made = gguf.quants.quantize(weights, tensor_type)
            writer.add_tensor(tensor.name, made, raw_dtype=tensor_type)
        else:
            writer.add_tensor(tensor.name, weights)
        progress(number, len(reader.tensors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_program(path: Path, fault: Path) -> Path:
    """Write the stand-in as an executable file. `fault` is the file that says what it does wrong."""
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} QUANTISER_FAULT={fault} exec {sys.executable} -m tests.quantised_models "$@"\n'
    )
    path.chmod(0o755)
    return path


def main() -> int:
    matrix = Path(sys.argv[sys.argv.index("--imatrix") + 1]) if "--imatrix" in sys.argv else None
    words = [word for word in sys.argv[1:] if not word.startswith("--") and word != str(matrix)]
    source, target, of_type = Path(words[0]), Path(words[1]), words[2]
    fault_file = Path(os.environ["QUANTISER_FAULT"])
    fault = fault_file.read_text() if fault_file.exists() else ""
    if fault == f"zero {of_type}":
        sys.exit("a\0b failed")
    if fault == f"refuse {of_type}":
        sys.stderr.write("llama_model_quantize: failed to quantize: requantizing from type q4_1 is disabled\n")
        return 1
    if fault == "show environment":
        sys.stderr.write("\n".join(f"{name}={value}" for name, value in os.environ.items()))
        return 1
    if fault == "abort":
        os.abort()

    def change(name: str, weights: Any) -> Any:
        return weights * 1.5 if fault == f"damage {of_type}" else weights

    def say(done: int, total: int) -> None:
        sys.stderr.write(f"[{done:4}/{total:4}] a tensor\n")
        while fault == "hang" and fault_file.exists():
            time.sleep(0.02)

    rewrite(source, target, of_type, change, say, matrix)
    return 0


if __name__ == "__main__":
    sys.exit(main())
