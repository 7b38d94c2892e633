"""A stand-in for `llama-imatrix`: importance matrices of random numbers, which depend on the text.

`python -m tests.importance_matrices --model MODEL --file TEXT --output MATRIX ...` takes the arguments of `llama-imatrix`. It reports its
progress in the same form, and refuses a text that is too short in the same words. A token is a word here.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy

from tests.quantised_models import ROOT

CHUNK = 512


def write_imatrix_program(path: Path) -> Path:
    """Write the stand-in as an executable file."""
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.importance_matrices "$@"\n')
    path.chmod(0o755)
    return path


def write_matrix(path: Path, model: Path, seed: int) -> None:
    """Write a matrix with the importance of each column of each matrix of a model."""
    random = numpy.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    for tensor in gguf.GGUFReader(model).tensors:
        if len(tensor.shape) > 1 and tensor.name != "token_embd.weight":
            squares = random.uniform(0.5, 50, (1, int(tensor.shape[0]))).astype(numpy.float32)
            writer.add_tensor(f"{tensor.name}.in_sum2", squares)
            writer.add_tensor(f"{tensor.name}.counts", numpy.full((1, 1), 5, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_older_matrix(
    path: Path, values: Mapping[str, Any], uses: int = 5, text: str | None = "/home/ada/secret.txt"
) -> None:
    """Write a matrix in the form before GGUF. `text` is the name of the text; None: the file ends before it, as the oldest do."""
    data = struct.pack("<i", len(values))
    for name, each in values.items():
        numbers = numpy.asarray(each, "<f4").ravel()
        data += (
            struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", uses, len(numbers)) + numbers.tobytes()
        )
    if text is not None:
        data += struct.pack("<ii", 7, len(text)) + text.encode()
    path.write_bytes(data)


def columns_of(model: Path) -> dict[str, int]:
    """The columns of the matrices of a model, but for that of the embeddings."""
    tensors = gguf.GGUFReader(model).tensors
    return {
        each.name: int(each.shape[0]) for each in tensors if len(each.shape) > 1 and each.name != "token_embd.weight"
    }


def main() -> int:
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    text = Path(given["--file"]).read_text("utf-8")
    tokens = len(text.split())
    if tokens < 2 * CHUNK:
        sys.stderr.write(f"compute_imatrix: you need at least {2 * CHUNK} tokens for a context of {CHUNK} tokens\n")
        sys.stderr.write(f"compute_imatrix: the data file you provided tokenizes to only {tokens} tokens\n")
        return 1
    chunks = tokens // CHUNK
    sys.stderr.write(f"compute_imatrix: computing over {chunks} chunks, n_ctx={CHUNK}, batch_size={CHUNK}, n_seq=1\n")
    for number in range(1, chunks + 1):
        sys.stdout.write(f"[{number}]17.8{number},")
        sys.stdout.flush()
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    write_matrix(Path(given["--output"]), Path(given["--model"]), seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
