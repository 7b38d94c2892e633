"""A checkpoint that the writer of GGUF files cannot write is refused in words: the step is not tried again."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from llamesh.kit.config import Settings
from services.quant.step import convert as step
from services.quant.step.report import StepRefusedError
from services.quant.workspace import JobSpec, Workspace
from tests.checkpoints import write_checkpoint
from tests.quantised_models import write_source

SPEC = JobSpec(
    job_id="job_1",
    name="tiny",
    model_uuid="",
    source_sha256="0" * 64,
    allow_requantize=False,
    pure=False,
    importance_matrix=False,
    max_kl_divergence=0,
    source="hf:ada/tiny@0",
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The folder of a job whose checkpoint was fetched."""
    workspace = Workspace(tmp_path / "home", SPEC.job_id)
    workspace.prepare(SPEC)
    write_checkpoint(write_source(tmp_path / "source.gguf"), workspace.checkpoint)
    return workspace


def _too_large(*_: Any) -> None:
    struct.pack("<I", 1 << 40)


def _overflows(*_: Any) -> None:
    raise OverflowError


@pytest.mark.parametrize("fault", [_too_large, _overflows])
def test_a_number_that_does_not_fit_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setattr(step, "_add_scaling", fault)
    with pytest.raises(StepRefusedError) as caught:
        step.convert(workspace, Settings(home=workspace.folder.parent.parent))
    assert caught.value.reason == "QUANT_REFUSED"
    assert not workspace.sources
    assert not workspace.unfinished_source.exists()
