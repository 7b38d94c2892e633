"""The step `verify`: refuses a variant unless it is a sound quantisation of its source.

It checks header and tensors first, which is cheap; then sampled rows against a second build of llama.cpp; then the model's predictions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamesh.kit.gguf import GgufError, GgufMetadata, TensorInfo, read_tensors
from services.quant.quantisations import QUANTISATIONS
from services.quant.states import StepKind
from services.quant.step import importance, measurement, tensor_rows
from services.quant.step.report import StepRefusedError, report_progress
from services.quant.workspace import Workspace

_PARTS = 4
_MAX_ERROR_FACTOR = 1.02
"""The bytes of two builds may differ if the error grows by at most this factor."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The checked header of a model, which may be in several files."""

    metadata: GgufMetadata
    """That of the first file."""
    tensors: Mapping[str, TensorInfo]
    paths: Mapping[str, Path]
    """The file of each tensor."""


def verify(workspace: Workspace, of_type: str) -> dict[str, Any]:
    """Check the variant of a type. Return its size, its SHA-256 and the fields of QuantReport."""
    path = workspace.variant(of_type)
    source, variant = opened(*workspace.sources), opened(path)
    check_header(source, variant, of_type)
    report_progress(1, _PARTS)
    spec = workspace.spec()
    matrix = importance.read(workspace.matrix) if spec.importance_matrix else {}
    compared = check_rows(source, variant, seed_of(spec.job_id, of_type), matrix)
    report_progress(2, _PARTS)
    report = {
        "bits_per_weight": variant.metadata.tensor_bytes * 8 / variant.metadata.parameter_count,
        "fallback_tensors": len(fallbacks(variant.tensors.values(), of_type)),
        "tensors": len(variant.tensors),
        "compared_tensors": compared,
        "matrix_sha256": (workspace.result(StepKind.IMATRIX, "") or {}).get("sha256", ""),
    }
    limit = spec.max_kl_divergence or QUANTISATIONS[of_type].max_kl
    report |= measured(workspace, source.metadata.vocabulary_size, of_type, limit)
    if report.get("not_measured") and spec.max_kl_divergence:
        # The caller asked for a proof. The limit of a type is llamesh's own, and the other checks have passed.
        raise StepRefusedError(
            "QUANT_REFUSED", f"max_kl_divergence is set, and the variant was not measured: {report['not_measured']}"
        )
    report_progress(3, _PARTS)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    report_progress(4, _PARTS)
    return {"size": variant.metadata.file_bytes, "sha256": sha256, "report": report}


def opened(*paths: Path) -> GgufFile:
    """Read and check the headers of the files of a model. Raises StepRefusedError."""
    headers: list[GgufMetadata] = []
    all_tensors: dict[str, TensorInfo] = {}
    path_of: dict[str, Path] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                metadata, tensors = read_tensors(file, path.stat().st_size)
        except GgufError as error:
            raise _unsound(f"{path.name}: {error}") from error
        headers.append(metadata)
        all_tensors |= {info.name: info for info in tensors}
        path_of |= {info.name: path for info in tensors}
    return GgufFile(headers[0], all_tensors, path_of)


def check_header(source: GgufFile, variant: GgufFile, of_type: str) -> None:
    """Raise StepRefusedError unless a variant has the tensors of its source and the wanted type."""
    mine, theirs = variant.metadata, source.metadata
    if mine.quantisation != of_type:
        raise _unsound(f"the file has the type {mine.quantisation}")
    if mine.architecture != theirs.architecture or mine.vocabulary_size != theirs.vocabulary_size:
        raise _unsound("architecture or vocabulary differ from the source")
    if variant.tensors.keys() != source.tensors.keys():
        different = sorted(source.tensors.keys() ^ variant.tensors.keys())
        raise _unsound(f"it has other tensors than the source: {', '.join(different[:5])}")
    for name, info in variant.tensors.items():
        if info.shape != source.tensors[name].shape:
            raise _unsound(f"the tensor {name} has another shape than in the source")


def check_rows(source: GgufFile, variant: GgufFile, seed: int, matrix: Mapping[str, Any]) -> int:
    """Compare rows of one tensor of each type with the source's rows quantised by another build. Return the number of tensors compared.

    `matrix` is the importance of the columns of tensors, if the variant was made with it (`importance`).
    """
    names = sampled(list(variant.tensors.values()), seed)
    for name in names:
        mine, theirs = variant.tensors[name], source.tensors[name]
        number, first, count = tensor_rows.sample_of(mine, seed)
        stored = tensor_rows.stored_rows(variant.paths[name], mine, first, count)
        weights = tensor_rows.weights_of(tensor_rows.stored_rows(source.paths[name], theirs, first, count), theirs.type)
        made = tensor_rows.quantised(weights, mine.type, matrix[name][number] if name in matrix else None)
        if (stored == made).all():
            continue
        mine_error = tensor_rows.relative_error(stored, mine.type, weights)
        allowed = tensor_rows.relative_error(made, mine.type, weights) * _MAX_ERROR_FACTOR
        if not mine_error <= allowed:
            raise _unsound(f"the tensor {name} has an error of {mine_error:.3g}, at most {allowed:.3g} is possible")
    return len(names)


def sampled(tensors: Sequence[TensorInfo], seed: int) -> list[str]:
    """Return one tensor of each type, chosen by the seed."""
    by_type: dict[str, list[str]] = {}
    for info in tensors:
        by_type.setdefault(info.type, []).append(info.name)
    return [names[seed % len(names)] for names in by_type.values()]


def seed_of(job_id: str, of_type: str) -> int:
    """Return the seed of a variant: the same each time it is verified."""
    return int.from_bytes(hashlib.sha256(f"{job_id}/{of_type}".encode()).digest()[:8])


def fallbacks(tensors: Any, of_type: str) -> list[str]:
    """Return the tensors whose rows do not divide into the blocks of a type, so that llama.cpp chose another type."""
    block = tensor_rows.block_of(of_type)
    return [info.name for info in tensors if len(info.shape) > 1 and info.shape[0] % block]


def measured(workspace: Workspace, vocabulary: int, of_type: str, limit: float) -> dict[str, Any]:
    """Return the measured fields of the report. Raises StepRefusedError if the variant differs too much from its source."""
    if short := measurement.memory_missing(workspace.sources, vocabulary):
        return {"not_measured": short}
    try:
        tokens, source = measurement.cached_predictions(workspace.sources[0], workspace.measured_source)
    except measurement.NotMeasurableError as error:
        return {"not_measured": str(error)}
    # The step is not silent for the time of both models.
    report_progress(2, _PARTS)
    try:
        others, variant = measurement.predictions(workspace.variant(of_type))
    except measurement.NotMeasurableError as error:
        raise _unsound(str(error)) from error
    if list(others) != list(tokens):
        raise _unsound("it splits the same text into other tokens than its source")
    found = measurement.compared(source, variant, tokens)
    if not found.kl_divergence <= limit or not math.isfinite(found.perplexity):
        raise _unsound(
            f"the mean KL divergence from the source is {found.kl_divergence:.3g}, at most {limit:g} is allowed"
            f" (perplexity {found.perplexity:.4g}, that of the source {found.source_perplexity:.4g})"
        )
    return {
        "measured_tokens": found.tokens,
        "kl_divergence": found.kl_divergence,
        "same_top_token": found.same_top_token,
        "perplexity": found.perplexity,
        "source_perplexity": found.source_perplexity,
    }


def _unsound(problem: str) -> StepRefusedError:
    return StepRefusedError("VARIANT_UNSOUND", problem)
