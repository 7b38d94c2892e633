"""A job is started again only if the files that it reads again are still there: what was handed over goes when a job has ended."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, cast

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.locations import handed_over_directory
from llamesh.v1.checkpoint_pb2 import MatrixFile
from services.quant.jobs import Job
from services.quant.retries import Retries, anew
from services.quant.states import JobState, StepKind
from services.quant.tables import QuantJobRow
from services.quant.workspace import Workspace
from tests.unit.test_retries_reset_by_cause import failed_at


class FakeJobs:
    """A job that has failed at a step; records with which version it was started again."""

    def __init__(self, failed: StepKind, source: str) -> None:
        row = QuantJobRow(
            job_id="job_1",
            model_uuid="",
            source=source,
            shown_source="tiny",
            matrix_source="file:///import/matrix.gguf",
            importance_matrix=True,
            name="tiny",
            types=["Q8_0"],
            pure=False,
            allow_requantize=False,
            max_kl_divergence=0,
            state=JobState.FAILED,
        )
        self.job = Job(row, failed_at(failed, "QUANT_REFUSED"))
        self.started: list[str] = []
        self.text = ""

    async def calibration_text(self, job_id: str) -> str:
        return self.text

    async def get(self, job_id: str) -> Job:
        return self.job

    async def retry(self, job_id: str, requester_uid: str, *, matrix_version: str = "") -> Job:
        self.started.append(matrix_version)
        return self.job


class FakeSources:
    """The sources; records what is looked for, and refuses what is gone."""

    def __init__(self, gone: str) -> None:
        self._gone = gone
        self.asked: list[str] = []

    async def check_folder(self, source: str) -> None:
        self._ask("checkpoint")

    async def matrix(self, source: str) -> MatrixFile:
        self._ask("matrix")
        return MatrixFile(version="present")

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what == self._gone:
            raise MeshError(Reason.ERROR_REASON_SOURCE_REFUSED, f"cannot open the {what}", {"rule": "missing"})


FOLDER, HUB = "file:///import/handed-over/1/tiny", f"hf:ada/Tiny@{'0' * 40}"


@pytest.mark.parametrize(
    ("failed", "source", "kept", "asked"),
    [
        (StepKind.IMATRIX, FOLDER, True, ["matrix"]),
        (StepKind.QUANTIZE, FOLDER, True, ["checkpoint"]),
        (StepKind.FETCH, FOLDER, True, ["checkpoint", "matrix"]),
        (StepKind.PUBLISH, FOLDER, True, []),
        (StepKind.PUBLISH, FOLDER, False, ["checkpoint", "matrix"]),
        (StepKind.FETCH, HUB, False, ["matrix"]),
    ],
)
async def test_a_retry_looks_for_what_it_reads_again(
    tmp_path: Path, failed: StepKind, source: str, kept: bool, asked: list[str]
) -> None:
    if kept:
        Workspace(tmp_path, "job_1").folder.mkdir(parents=True)
    for gone in ("", "checkpoint", "matrix"):
        jobs, sources = FakeJobs(failed, source), FakeSources(gone)
        retries = Retries(Settings(home=tmp_path), cast("Any", jobs), cast("Any", sources))
        if gone in asked:
            with pytest.raises(MeshError, match=r"put it back and retry the job, or start a new one with `llamesh q"):
                await retries.retry("job_1", "usr_ada")
            assert jobs.started == []
            continue
        await retries.retry("job_1", "usr_ada")
        assert sources.asked == asked
        assert jobs.started == ["present" if "matrix" in asked else ""]


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED])
async def test_a_job_that_is_not_started_again_needs_no_files(tmp_path: Path, state: JobState) -> None:
    jobs, sources = FakeJobs(StepKind.FETCH, FOLDER), FakeSources("checkpoint")
    jobs.job.row.state = state
    await Retries(Settings(home=tmp_path), cast("Any", jobs), cast("Any", sources)).retry("job_1", "usr_ada")
    assert (sources.asked, jobs.started) == ([], [""])


@pytest.mark.parametrize(
    ("handed_over", "remedy", "command"),
    [
        (True, "is kept until the job has ended: start a new job with", "./my tiny"),
        (False, "put it back and retry the job, or start a new one with", "file:///FOLDER/my%20tiny"),
    ],
)
@pytest.mark.parametrize("text", ["", "words of the user"])
async def test_the_command_for_a_new_job_starts_the_same_job(
    tmp_path: Path, handed_over: bool, remedy: str, command: str, text: str
) -> None:
    folder = (handed_over_directory(tmp_path) / "1" if handed_over else tmp_path / "import") / "my tiny"
    jobs = FakeJobs(StepKind.FETCH, folder.as_uri())
    jobs.text, jobs.job.row.matrix_source = text, ""
    retries = Retries(Settings(home=tmp_path), cast("Any", jobs), cast("Any", FakeSources("checkpoint")))
    with pytest.raises(MeshError) as raised:
        await retries.retry("job_1", "usr_ada")
    assert f"{remedy} `llamesh quantize " in raised.value.message
    words = shlex.split(raised.value.message.partition("`")[2].rstrip("`"))
    measured = ["--calibration", "TEXTFILE"] if text else ["--importance-matrix"]
    assert words == ["llamesh", "quantize", command, "--types", "Q8_0", "--name", "tiny", *measured]


def test_a_matrix_is_named_by_where_it_lies(tmp_path: Path) -> None:
    job = FakeJobs(StepKind.IMATRIX, HUB).job
    assert anew(job, tmp_path, own_text=False).endswith("--imatrix file:///FOLDER/matrix.gguf")
    job.row.matrix_source = (handed_over_directory(tmp_path) / "1" / "matrix.gguf").as_uri()
    assert anew(job, tmp_path, own_text=False).endswith("--imatrix ./matrix.gguf")
