"""The largest files that a mesh takes: the command, the download service and the Quant service have the same limits."""

from __future__ import annotations

MAX_MATRIX_BYTES = 1 << 30
"""Maximum size of an importance matrix, that of the contract. The matrix of a model of 671 billion weights has about 700 MB."""
