"""A step gets the variables and settings that it needs: the keys of a bucket if it uses one, and no other secret."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from services.quant.states import StepKind
from services.quant.step import fetch
from services.quant.step.__main__ import _done
from services.quant.step_environment import step_environment
from services.quant.step_process import StepProcess
from services.quant.workspace import JobSpec, StoredPart, Workspace

PLAIN = {
    "PATH": "/bin",
    "LD_LIBRARY_PATH": "/opt/llama",
    "OMP_NUM_THREADS": "2",
    "PYTHONPATH": "/src",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "0",
}
PROXY = {"https_proxy": "http://ada:password@proxy:3128", "NO_PROXY": "localhost"}
OTHERS = {"HF_TOKEN": "hf_1", "AWS_SECRET_ACCESS_KEY": "aws", "LLAMESH_LIFELINE_FD": "3", "LLAMESH_CONFIG": "/etc/mesh"}
KEYS = {"MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "QUANT_MINIO_ACCESS_KEY", "QUANT_MINIO_SECRET_KEY"}
ON_TCP = {
    "member_addresses": {"download": "download:9000", "gateway": "[::1]:9001"},
    "member_certificates": Path("/certificates/{member}"),
    "trust_domain": "mesh.test",
}
STEPS_WITH_CHANNELS = ("fetch", "fetch_checkpoint", "given_matrix")
SECRETS = {
    name: f"the secret {name} of the mesh, which is long"
    for name, field in Settings.model_fields.items()
    if "SecretStr" in str(field.annotation) and name != "database_url"
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with every secret."""
    secrets = {name: SecretStr(value) for name, value in SECRETS.items()}
    return Settings(home=tmp_path, minio_secure=True, minio_endpoint="minio:9000").model_copy(update=secrets)


def test_a_step_without_a_bucket_gets_no_secret(settings: Settings) -> None:
    found = step_environment(settings, PLAIN | PROXY | OTHERS, uses_bucket=False)
    assert found == PLAIN | {"LLAMESH_HOME": str(settings.home)}
    assert len(SECRETS) > 6


def test_a_step_with_a_bucket_gets_its_keys_and_no_other_secret(settings: Settings) -> None:
    found = step_environment(settings, PLAIN | PROXY | OTHERS, uses_bucket=True)
    assert {name for name, value in found.items() if "secret" in value} == KEYS
    assert found.items() >= (PLAIN | PROXY).items()
    assert not found.keys() & OTHERS.keys()


def test_a_step_reads_the_same_settings_from_its_environment(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in step_environment(settings, {}, uses_bucket=True).items():
        monkeypatch.setenv(name, value)
    read = Settings(_env_file=None)  # type: ignore[call-arg]
    for field in (
        "home",
        "minio_endpoint",
        "minio_secure",
        "minio_secret_key",
        "quant_minio_secret_key",
        "cache_bytes",
    ):
        assert getattr(read, field) == getattr(settings, field)
    assert read.jwt_secret is None


def test_a_step_that_asks_the_download_service_reads_where_members_are(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_tcp = settings.model_copy(update=ON_TCP)
    assert step_environment(settings, {}, uses_bucket=False, asks_download=True).keys() == {"LLAMESH_HOME"}
    assert step_environment(on_tcp, {}, uses_bucket=False).keys() == {"LLAMESH_HOME"}
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in step_environment(on_tcp, {}, uses_bucket=False, asks_download=True).items():
        monkeypatch.setenv(name, value)
    read = Settings(_env_file=None)  # type: ignore[call-arg]
    for field in ("member_addresses", "member_certificates", "trust_domain"):
        assert getattr(read, field) == getattr(on_tcp, field)


async def _environment_of(kind: str, settings: Settings, program: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the program of a step is given, from a stand-in for Python."""
    program.write_text(f"#!/bin/sh\nexec env > {program}.said\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    for name, value in OTHERS.items():
        monkeypatch.setenv(name, value)
    await StepProcess(settings, kind, "job_1", "").run(lambda _done, _total: None)
    return Path(f"{program}.said").read_text()


def spec(**fields: Any) -> JobSpec:
    return JobSpec("job_1", "m", "m", "", False, False, False, 0, **fields)


OBJECTS = (StoredPart("models/1", 1, ""),)
SPECS = {
    f"{source or 'catalogue'}-{matrix or 'no matrix'}-{'objects' if objects else 'located'}": spec(
        source=source, matrix_source=matrix, objects=objects
    )
    for source in ("", "file:///import/checkpoint")
    for matrix in ("", "file:///import/matrix.gguf")
    for objects in ((), OBJECTS)
}


@pytest.mark.parametrize("kind", list(StepKind))
@pytest.mark.parametrize("of_job", SPECS.values(), ids=SPECS)
async def test_the_steps_that_ask_the_download_service_know_where_it_is(
    kind: StepKind, of_job: JobSpec, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_tcp = settings.model_copy(update=ON_TCP)
    Workspace(on_tcp.home, "job_1").prepare(of_job)
    said = await _environment_of(kind, on_tcp, tmp_path / "python", monkeypatch)
    # A step has an event loop of its own.
    wanted = await asyncio.to_thread(_asks_download, kind, Workspace(on_tcp.home, "job_1"), on_tcp, monkeypatch)
    for line in ("LLAMESH_MEMBER_ADDRESSES=download=download:9000", "LLAMESH_MEMBER_CERTIFICATES=/certificates"):
        assert (line in said) is wanted, said
    assert ("LLAMESH_TRUST_DOMAIN=mesh.test" in said) is wanted


class _Asked(BaseException):
    """A step has opened a channel to the download service."""


def _asks_download(kind: StepKind, workspace: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run the step, and return whether it opens a channel."""

    def opened(_settings: Settings, member: str, _caller: str) -> None:
        assert member == "download"
        raise _Asked

    for module in STEPS_WITH_CHANNELS:
        monkeypatch.setattr(f"services.quant.step.{module}.channel", opened)
    try:
        _done(kind, "Q8_0", workspace, settings)
    except _Asked:
        return True
    except Exception:
        # It has none of its files.
        return False
    return False


def test_no_other_step_opens_a_channel() -> None:
    folder = Path(fetch.__file__).parent
    found = {path.stem for path in folder.glob("*.py") if "llamesh.kit.channels" in path.read_text("utf-8")}
    assert found == set(STEPS_WITH_CHANNELS)


@pytest.mark.parametrize("kind", list(StepKind))
@pytest.mark.parametrize("objects", [(), OBJECTS], ids=["located", "objects"])
async def test_only_steps_that_use_a_bucket_get_its_keys(
    kind: StepKind,
    objects: tuple[StoredPart, ...],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Workspace(settings.home, "job_1").prepare(spec(objects=objects))
    said = await _environment_of(kind, settings, tmp_path / "python", monkeypatch)
    assert ("MINIO_SECRET_KEY" in said) is (kind == StepKind.PUBLISH or (kind == StepKind.FETCH and bool(objects)))
    assert not [name for name in SECRETS if "minio" not in name and SECRETS[name] in said]
    assert not [name for name in OTHERS if name in said]


async def test_a_step_reads_no_file_of_settings(tmp_path: Path) -> None:
    """A line that is not a setting would end every program that reads the file."""
    home = tmp_path / "home"
    settings = Settings(home=home)
    workspace = Workspace(home, "job_1")
    workspace.prepare(JobSpec("job_1", "m", "m", "", False, False, False, 0))
    (home / "config.env").write_text("JWT_SECRET=short\nnonsense\n")
    workspace.keep_result("quantize", "Q8_0", {"size": 1})
    outcome = await StepProcess(settings, "quantize", "job_1", "Q8_0").run(lambda _done, _total: None)
    assert json.dumps(outcome.result) == '{"size": 1}', outcome


@pytest.mark.parametrize("kind", list(StepKind))
async def test_a_source_whose_objects_are_listed_is_read_with_the_keys_of_the_bucket(
    kind: StepKind, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = settings.model_copy(update=ON_TCP | {"minio_endpoint": "store:9000"})
    Workspace(remote.home, "job_1").prepare(spec())
    said = await _environment_of(kind, remote, tmp_path / "python", monkeypatch)
    assert ("MINIO_SECRET_KEY" in said) is (kind in (StepKind.FETCH, StepKind.PUBLISH))
    assert ("LLAMESH_MEMBER_ADDRESSES" in said) is (kind == StepKind.FETCH)
