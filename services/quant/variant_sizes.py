"""Estimates the size of a variant, with the types that llama.cpp takes where rows do not divide into the blocks of the wanted one. No I/O.

llama.cpp stores the weights of a K or IQ type in blocks of 256. A tensor whose rows do not divide into them gets a larger type of blocks of
32, and F16 if its rows do not divide into these either. The output matrix,
which is that of the embeddings in a model without one, is kept in Q6_K, which becomes Q8_0.

The catalogue knows no shapes of tensors, only the facts of the header. Rows of a model are as long as its embeddings, except for those of
two matrices of each block, which are taken for as long: where measured, sizes are within a tenth.
"""

from __future__ import annotations

from llamesh.v1.model_pb2 import GgufMetadata
from services.quant.quantisations import QUANTISATIONS, UNQUANTISED

BLOCK, FALLBACK_BLOCK = 256, 32
"""Weights of a row that are stored together: by K and IQ types, and by the types that replace them."""
_HALF, _Q8_0 = 16.0, 8.5
_IN_SMALL_BLOCKS = frozenset({"Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"})
_REPLACED = {"Q6_K": _Q8_0, "Q5_K": 6.0, "Q4_K": 5.5}
"""Bits of the types that replace these: Q8_0, Q5_1 and Q5_0. All smaller ones are replaced by Q4_0 or IQ4_NL."""
_SMALLEST = 4.5


def variant_bytes(model: GgufMetadata, of_type: str) -> int:
    """Return the estimated bytes of the weights of a variant. A model whose width is not known is taken for one without fallbacks."""
    row = model.embedding_length
    output = min(row * model.vocabulary_size, model.parameter_count)
    rest = model.parameter_count - output
    return int((output * _output_bits(of_type, row) + rest * weight_bits(of_type, row)) / 8)


def weight_bits(of_type: str, row: int) -> float:
    """Return the bits of a weight in rows of this length."""
    wanted = QUANTISATIONS[of_type].bits
    if not falls_back(of_type, row):
        return wanted
    if row % FALLBACK_BLOCK:
        return _HALF
    return wanted if of_type in _IN_SMALL_BLOCKS else _REPLACED.get(of_type[:4], _SMALLEST)


def falls_back(of_type: str, row: int) -> bool:
    """Whether llama.cpp takes other types than the usual ones for rows of this length."""
    return of_type not in UNQUANTISED and row % BLOCK != 0


def _output_bits(of_type: str, row: int) -> float:
    # Without a fallback, the bits of a type are an average with the output matrix.
    output_falls_back = falls_back(of_type, row) and row % FALLBACK_BLOCK == 0
    return _Q8_0 if output_falls_back else weight_bits(of_type, row)
