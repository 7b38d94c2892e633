"""A step whose other service is away ends as an outage within a short call, and leaves its place to other jobs.

A long call fails at once if the service is away, also between two calls: only short ones wait.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamesh.kit.channels import DEADLINE, call_options
from llamesh.kit.config import Settings
from llamesh.v1.checkpoint_pb2 import Checkpoint, CheckpointFile, MatrixFile
from llamesh.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub
from llamesh.v1.model_pb2 import Model
from services.quant.job_sources import digest_of
from services.quant.step.fetch import fetch
from services.quant.step.imatrix import imatrix
from services.quant.step.report import StepOutageError
from services.quant.workspace import JobSpec, Workspace

STEPS: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    "fetch": (fetch, {}),
    "fetch_checkpoint": (fetch, {"source": "file:///import/checkpoint"}),
    "given_matrix": (imatrix, {"matrix_source": "file:///import/matrix.gguf"}),
}

CHECKPOINT = Checkpoint(files=[CheckpointFile(name="config.json", size_bytes=1, version="1")])
ANSWERS: dict[str, tuple[type, str, Any]] = {
    "fetch": (CatalogueServiceStub, "GetCatalogueModel", Model()),
    "fetch_checkpoint": (CheckpointServiceStub, "GetCheckpoint", CHECKPOINT),
    "given_matrix": (CheckpointServiceStub, "GetMatrixFile", MatrixFile()),
}


@pytest.mark.parametrize("module", STEPS)
def test_a_service_that_is_away_is_an_outage_in_words(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[float, bool]] = []

    def shortened(deadline: float = DEADLINE, **fields: Any) -> dict[str, Any]:
        options = call_options(deadline, **fields)
        made.append((deadline, options["wait_for_ready"]))
        return {**options, "timeout": 0.1 if deadline == DEADLINE else deadline}

    monkeypatch.setattr(f"services.quant.step.{module}.call_options", shortened)
    step, fields = STEPS[module]
    workspace = Workspace(tmp_path, "job_1")
    workspace.prepare(JobSpec("job_1", "m", "m", "", False, False, False, 0, **fields))
    with pytest.raises(StepOutageError, match="the download service") as raised:
        step(workspace, Settings(home=tmp_path))
    assert raised.value.reason == "COMPONENT_UNAVAILABLE"
    assert made == [(DEADLINE, True)]


@pytest.mark.parametrize("module", STEPS)
def test_a_service_that_goes_away_between_two_calls_is_an_outage(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in answers the short call; the long one finds nobody."""
    stub, method, answer = ANSWERS[module]

    async def answered(_request: Any, **_options: Any) -> Any:
        return answer

    def stand_in(channel: Any) -> Any:
        made = stub(channel)
        setattr(made, method, answered)
        return made

    monkeypatch.setattr(f"services.quant.step.{module}.{stub.__name__}", stand_in)
    step, fields = STEPS[module]
    workspace = Workspace(tmp_path, "job_1")
    workspace.prepare(JobSpec("job_1", "m", "m", digest_of(CHECKPOINT.files), False, False, False, 0, **fields))
    with pytest.raises(StepOutageError, match="the download service"):
        step(workspace, Settings(home=tmp_path))
