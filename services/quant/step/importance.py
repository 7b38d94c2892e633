"""Reads an importance matrix: for each tensor, the mean square of what each of its columns is multiplied with.

It is the file that llama-imatrix writes: for a tensor NAME, `NAME.in_sum2` has the sums of the squares, one line for each of its matrices
(a mixture of experts has several), and `NAME.counts` how often each matrix was used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read(path: Path) -> dict[str, Any]:
    """Return the importance of the columns of each tensor: an array of 32-bit numbers, one line for each matrix of the tensor.

    A matrix that was never used has the importance 1 everywhere, as llama-quantize takes it.
    """
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path, "r").tensors}
    return {
        name.removesuffix(_SUMS): _mean(sums, found[name.removesuffix(_SUMS) + _COUNTS])
        for name, sums in found.items()
        if name.endswith(_SUMS)
    }


def _mean(sums: Any, counts: Any) -> Any:
    uses = numpy.asarray(counts, numpy.float32).reshape(-1, 1)
    squares = numpy.asarray(sums, numpy.float32).reshape(len(uses), -1)
    return numpy.ascontiguousarray(numpy.where(uses > 0, squares / numpy.where(uses > 0, uses, 1), 1), numpy.float32)
