"""The results of the checks of a quantised variant, as columns show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamesh.v1.quant_pb2 import QuantReport


def divergence(report: QuantReport) -> str:
    """Return the KL divergence from the source."""
    return f"{report.kl_divergence:.4f}" if report.measured_tokens else "not measured"


def same_top_token(report: QuantReport) -> str:
    """Return the share of tokens with the same most likely next token; empty if it was not measured."""
    return f"{report.same_top_token:.1%}" if report.measured_tokens else ""


def quality(report: QuantReport) -> str:
    """Return all results in one line."""
    words = [f"{report.bits_per_weight:.2f} bits", f"KL {divergence(report)}"]
    if report.measured_tokens:
        words.append(f"same top token {same_top_token(report)}")
        words.append(f"perplexity {report.perplexity:.2f} ({report.source_perplexity:.2f} of the source)")
    if report.fallback_tensors:
        words.append(f"{report.fallback_tensors} of {report.tensors} tensors have another type")
    return ", ".join(words)
