"""A variant is measured if the memory of the machine or container suffices. One with a limit of the caller passes only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.kit.machine_memory import MachineMemory
from services.quant.step import measurement, verify
from services.quant.step.report import StepRefusedError
from services.quant.workspace import JobSpec, Workspace, finish
from tests.quantised_models import rewrite, write_source

pytest.importorskip("xllamacpp", reason="variants are compared with what the engine's library makes")

MIB = 1 << 20


def _offer(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(measurement, "machine_memory", lambda: MachineMemory(1 << 40, available))


def _prepared(home: Path, max_kl_divergence: float) -> Workspace:
    workspace = Workspace(home, "job_1")
    workspace.prepare(JobSpec("job_1", "m", "m", "", False, False, False, max_kl_divergence))
    write_source(home / "source.part")
    finish(home / "source.part", workspace.source_part(1, 1))
    rewrite(workspace.sources[0], workspace.variant("Q8_0"), "Q8_0")
    return workspace


def test_predictions_of_a_large_vocabulary_count_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(MIB))
    _offer(monkeypatch, 500 * MIB)
    assert measurement.memory_missing([model], 1_000) == ""
    assert measurement.memory_missing([model], 131_072) == (
        "measuring it needs 1.3 GiB of memory, 500 MiB are available"
    )


def test_a_variant_that_cannot_be_measured_passes_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _offer(monkeypatch, MIB)
    report = verify.verify(_prepared(tmp_path, 0), "Q8_0")["report"]
    assert "1 MiB are available" in report["not_measured"]


def test_a_variant_with_a_limit_of_the_caller_needs_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _offer(monkeypatch, MIB)
    with pytest.raises(StepRefusedError, match="max_kl_divergence is set, and the variant was not measured") as caught:
        verify.verify(_prepared(tmp_path, 0.5), "Q8_0")
    assert caught.value.reason == "QUANT_REFUSED"
