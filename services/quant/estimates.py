"""Estimates the results and the needs of a job, by the rules of `submission`. No I/O; nothing is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, name_of
from llamesh.v1.model_pb2 import Model
from llamesh.v1.quant_pb2 import EstimateQuantJobResponse, QuantError, QuantEstimate, QuantOptions
from services.quant import submission
from services.quant.job_sources import JobSource
from services.quant.quantisations import QUANTISATIONS, QUANTISED
from services.quant.variant_sizes import variant_bytes


def estimate(
    source: JobSource,
    types: Sequence[str],
    options: QuantOptions,
    settings: Settings,
    *,
    matrix_bytes: int = 0,
    free: int | None,
) -> EstimateQuantJobResponse:
    """Estimate a job that makes these types of a source, or all quantised ones if none are named. Raises INVALID_FIELD.

    `matrix_bytes`: length of an importance matrix that is given. `free`: bytes that are free for jobs; None if nobody knows.
    """
    submission.check_known(types)
    model = source.model
    each = [_of_type(model, name, options) for name in types or QUANTISED]
    possible = [item.type for item in each if not item.HasField("refusal")]
    needed = 0
    if possible:
        needed = submission.needed_bytes(model, possible, converted=source.converted, matrix_bytes=matrix_bytes)

    def check() -> None:
        submission.check_installation(options, settings)
        submission.check_source(model, allow_requantize=options.allow_requantize)
        submission.check_space(needed, free)

    refusal = _refusal(check) or next((item.refusal for item in each if types and item.HasField("refusal")), None)
    return EstimateQuantJobResponse(types=each, needed_bytes=needed, free_bytes=free or 0, refusal=refusal)


def _of_type(model: Model, name: str, options: QuantOptions) -> QuantEstimate:
    known, size_bytes = QUANTISATIONS[name], variant_bytes(model.gguf, name)
    weights = model.gguf.parameter_count
    return QuantEstimate(
        type=name,
        size_bytes=size_bytes,
        bits_per_weight=round(size_bytes * 8 / weights, 2) if weights else known.bits,
        max_kl_divergence=known.max_kl,
        refusal=_refusal(lambda: submission.check_types([name], importance_matrix=submission.uses_matrix(options))),
    )


def _refusal(check: Callable[[], None]) -> QuantError | None:
    try:
        check()
    except MeshError as error:
        return QuantError(reason=name_of(error.reason), message=error.message, remedy=error.remedy)
    return None
