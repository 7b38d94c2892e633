"""SIGKILL of the service and of its steps at every step: the job finishes, nothing is left behind, nothing is published twice."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import quant_pb2
from services.quant.states import StepKind
from tests.checkpoints import write_checkpoint
from tests.contract.patience import PATIENCE
from tests.contract.quant.conftest import ENDED, Quant

SEED = 13
MATRIX = quant_pb2.QuantOptions(importance_matrix=True)
TYPES = ("Q8_0", "Q4_0", "Q5_0")


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """The service as a process of its own."""
    url = settings.database_url
    environment = {
        **os.environ,
        "LLAMESH_HOME": str(settings.home),
        "LLAMA_QUANTIZE_BIN": settings.llama_quantize_bin,
        "LLAMA_IMATRIX_BIN": settings.llama_imatrix_bin,
        "JWT_SECRET": settings.jwt_secret.get_secret_value() if settings.jwt_secret else "",
        "LLAMESH_DRAIN_SECONDS": "1",
        **({"DATABASE_URL": url.get_secret_value()} if url else {}),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.quant", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def programs(job_id: str) -> list[psutil.Process]:
    """The programs that work for a job: those of its steps and the quantisers below them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(job_id in word for word in process.cmdline()):
                found.append(process)
    return found


def programs_of_step(job_id: str, moment: tuple[int, str]) -> list[psutil.Process]:
    """The program of one step, and the quantiser below it. A step fails at its third crash, so no other one may be killed."""
    kind, of_type = moment
    name = quant_pb2.QuantStepKind.Name(kind).removeprefix("QUANT_STEP_KIND_").lower()
    words, found = [name, job_id, *([of_type] if of_type else [])], []
    for process in programs(job_id):
        with suppress(psutil.Error):
            if process.cmdline()[-len(words) :] == words:
                found += [*process.children(recursive=True), process]
    return found


async def gone(job_id: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while programs(job_id):
            await asyncio.sleep(0.1)


def moments() -> list[tuple[int, str]]:
    """The steps of the job, of every kind: a kill comes in each of them."""
    kinds = [getattr(quant_pb2, f"QUANT_STEP_KIND_{kind.name}") for kind in StepKind]
    of_all, of_a_type = kinds[:3], kinds[3:]
    return [*((kind, "") for kind in of_all), *((kind, each) for each in TYPES for kind in of_a_type)]


def is_at(job: quant_pb2.QuantJob, moment: tuple[int, str]) -> bool:
    """Whether a job is at a step or beyond it."""
    if job.state in ENDED:
        return True
    step = next(step for step in job.steps if (step.kind, step.type) == moment)
    return step.state != quant_pb2.QUANT_STEP_STATE_WAITING or bool(step.tries)


ON_SQLITE = pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
"""For what is the same on every database."""


async def finishes(prepared: Quant, checkpoint: Path, *, kill_steps: bool) -> None:
    """Kill the service, or before that the programs of the step, once in each step of a job; then let it finish."""
    killed = set[tuple[int, str]]()
    chance = random.Random(SEED + kill_steps)
    folder, job_id = prepared.settings.home / "import" / "tiny", ""
    shutil.copytree(checkpoint, folder)
    fields = {"model_uuid": "", "source": folder.as_uri(), "options": MATRIX, "max_kl_divergence": 1000}
    for moment in moments():
        async with service(prepared.settings):
            job_id = job_id or (await prepared.create(*TYPES, **fields)).job_id
            await prepared.until(job_id, lambda job, at=moment: is_at(job, at))
            # Somewhere in the step: in its start, its work or its end.
            await asyncio.sleep(chance.random())
            if kill_steps:
                for process in programs_of_step(job_id, moment):
                    with suppress(psutil.Error):
                        process.kill()
                        killed.add(moment)
                await prepared.job(job_id)
        await gone(job_id)
    async with service(prepared.settings):
        job = await prepared.ended(job_id)
        assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED, [
            (each.kind, each.type, each.error.message) for each in job.steps
        ]
        assert [(step.kind, step.type) for step in job.steps] == moments()
        await prepared.tidy(len(TYPES))
    await gone(job_id)
    assert bool(killed) == kill_steps, "no step lasted until its kill"


@pytest.fixture(scope="module")
def checkpoint(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(source, tmp_path_factory.mktemp("checkpoints") / "tiny", parts=2)


@pytest.mark.timeout(600)
async def test_a_job_finishes_whenever_the_service_is_killed(prepared: Quant, checkpoint: Path) -> None:
    await finishes(prepared, checkpoint, kill_steps=False)


@ON_SQLITE
@pytest.mark.timeout(600)
async def test_a_job_finishes_whenever_a_step_is_killed(prepared: Quant, checkpoint: Path) -> None:
    await finishes(prepared, checkpoint, kill_steps=True)


@ON_SQLITE
async def test_a_folder_that_is_removed_is_made_again_from_the_source(prepared: Quant) -> None:
    prepared.fault.write_text("hang")
    async with service(prepared.settings):
        job_id = (await prepared.create("Q8_0")).job_id
        await prepared.until(job_id, lambda job: job.steps[1].done)
    await gone(job_id)
    for path in (prepared.settings.home / "quant" / job_id).iterdir():
        path.unlink()
    prepared.fault.unlink()
    async with service(prepared.settings):
        job = await prepared.ended(job_id)
        assert job.state == quant_pb2.QUANT_JOB_STATE_SUCCEEDED
        assert job.steps[0].tries == 1
        await prepared.tidy(1)
