"""The types that a job can make, as llama.cpp names them.

Bits and the need for a matrix are those of llama.cpp's own quantiser. The limits of the KL divergence are llamesh's: several times the
divergence of a sound file of a small model, and a fraction of that of a damaged one.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamesh.kit.gguf.types import FILE_TYPES
from llamesh.nearest import near

UNQUANTISED = frozenset({"F32", "F16", "BF16"})
"""Types of a source that is not quantised."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """One type of a whole file."""

    name: str
    bits: float
    """Bits of a weight in a large model; small models need more (ADR 36)."""
    max_kl: float
    """Largest mean KL divergence, in nats per token, with which a variant is published."""
    needs_matrix: bool = False
    """Whether llama.cpp refuses to make it without an importance matrix of a model whose rows divide into blocks of 256."""

    @property
    def file_type(self) -> int:
        """llama.cpp's number of the type, `general.file_type` in a file."""
        return _NUMBERS[self.name]


_NUMBERS = {name: number for number, name in FILE_TYPES.items()}

QUANTISATIONS = {
    item.name: item
    for item in (
        # For a checkpoint that is to be published as it was converted. The other of the two rounds its weights.
        Quantisation("BF16", 16.0, 0.01),
        Quantisation("F16", 16.0, 0.01),
        Quantisation("Q8_0", 8.5, 0.05),
        Quantisation("Q6_K", 6.6, 0.1),
        Quantisation("Q5_1", 6.0, 0.25),
        Quantisation("Q5_K_M", 5.7, 0.25),
        Quantisation("Q5_K_S", 5.6, 0.25),
        Quantisation("Q5_0", 5.5, 0.25),
        Quantisation("Q4_1", 5.0, 0.5),
        Quantisation("Q4_K_M", 4.9, 0.5),
        Quantisation("Q4_K_S", 4.7, 0.5),
        Quantisation("IQ4_NL", 4.7, 0.5),
        Quantisation("Q4_0", 4.5, 0.5),
        Quantisation("IQ4_XS", 4.5, 0.5),
        Quantisation("Q3_K_L", 4.3, 1.0),
        Quantisation("Q3_K_M", 4.0, 1.0),
        Quantisation("IQ3_M", 3.8, 1.0),
        Quantisation("Q3_K_S", 3.7, 1.0),
        Quantisation("IQ3_S", 3.7, 1.0),
        # llama.cpp gives some of their tensors types that need a matrix: IQ3_XXS and IQ2_S.
        Quantisation("IQ3_XS", 3.5, 1.0, needs_matrix=True),
        Quantisation("IQ3_XXS", 3.3, 1.0, needs_matrix=True),
        Quantisation("Q2_K", 3.2, 2.0),
        Quantisation("Q2_K_S", 3.0, 2.0, needs_matrix=True),
        Quantisation("IQ2_M", 2.9, 2.0, needs_matrix=True),
        Quantisation("IQ2_S", 2.7, 2.0, needs_matrix=True),
        Quantisation("IQ2_XS", 2.6, 2.0, needs_matrix=True),
        Quantisation("IQ2_XXS", 2.4, 2.0, needs_matrix=True),
        Quantisation("IQ1_M", 2.2, 3.0, needs_matrix=True),
        Quantisation("IQ1_S", 2.0, 3.0, needs_matrix=True),
    )
}
"""The types by name, the largest first."""

QUANTISED = tuple(name for name in QUANTISATIONS if name not in UNQUANTISED)
"""The types that make a model smaller than its source."""


def nearest(name: str) -> list[str]:
    """Return at most three names that are similar to an unknown name; if there are none, some common types."""
    meant = name.upper().replace("-", "_")
    return near(meant, QUANTISATIONS, 3, 0.5) or ["Q4_K_M", "Q5_K_M", "Q8_0"]
