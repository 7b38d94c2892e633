"""The whole flow with the Quant service of the mesh: quantise, fetch the variant, serve it, ask it; and who may call."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.xds.public_api import Method, PublicApi
from llamesh.v1 import quant_pb2  # noqa: F401 - known to the pool by that
from tests.checkpoints import write_checkpoint
from tests.importance_matrices import columns_of, write_imatrix_program, write_older_matrix
from tests.mesh.pages import fences, steps
from tests.mesh.people import People, bearer
from tests.mesh.running import ROOT, RunningMesh, running_mesh, until
from tests.ports import free_ports
from tests.quantised_models import rewrite, write_program

pytest.importorskip("xllamacpp", reason="variants are compared with what the engine's library makes")

METHODS = [
    method
    for method in PublicApi(Path(ROOT, "envoy", "llamesh.binpb"), ["llamesh.v1.QuantService"]).methods
    if not method.internal
]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("quantiser")
    program = write_program(folder / "llama-quantize", folder / "fault")
    (port,) = free_ports(1)
    settings = {
        "LLAMESH_QUANT": "true",
        "LLAMESH_QUANT_PORT": str(port),
        "LLAMA_QUANTIZE_BIN": str(program),
        "LLAMA_IMATRIX_BIN": str(write_imatrix_program(folder / "llama-imatrix")),
    }
    with running_mesh(**settings) as running:
        running.ports["quant"] = port
        running.add_model("plain")
        plain = running.call("GET", "/models/plain").json()
        source = running.home.parent / "words-f16.gguf"
        rewrite(next((running.home / "objects" / "models").glob(f"{plain['sha256']}*")), source, "F16")
        running.add_model("words-f16", path=source)
        yield running


def command(mesh: RunningMesh, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**mesh.environment, "LLAMESH_TOKEN": mesh.token}
    line = [sys.executable, "-m", "llamesh.cli.main", *words]
    return subprocess.run(line, env=environment, cwd=mesh.home, capture_output=True, text=True, timeout=120)


def ended(mesh: RunningMesh, model_uuid: str) -> dict[str, Any] | None:
    """The download of a model, once it has ended."""
    download: dict[str, Any] = mesh.call("GET", f"/status/{model_uuid}", "download").json()
    return download if download["state"] in {"DOWNLOAD_STATE_SUCCEEDED", "DOWNLOAD_STATE_FAILED"} else None


@pytest.fixture(scope="module")
def made(mesh: RunningMesh) -> subprocess.CompletedProcess[str]:
    """The variants Q8_0 and Q4_0."""
    ended = command(mesh, "quantize", "words-f16", "--types", "Q8_0,Q4_0", "--wait")
    assert ended.returncode == 0, ended.stderr
    return ended


def test_a_variant_is_made_fetched_served_and_answers(
    mesh: RunningMesh, made: subprocess.CompletedProcess[str]
) -> None:
    assert {"words-Q8_0", "words-Q4_0"} <= set(made.stdout.split())
    assert "quantize Q8_0" in made.stderr
    report = mesh.call("GET", "/models/words-Q8_0", "quant").json()
    assert report["bucket"] == "llm-models"
    assert report["report"]["bits_per_weight"] > 8

    # As users of the reference deployment do: by the id alone.
    assert mesh.call("POST", "/download/words-Q8_0", "download").status_code == 200
    fetched = until(lambda: ended(mesh, "words-Q8_0"), 60, "the download")
    assert fetched["state"] == "DOWNLOAD_STATE_SUCCEEDED", fetched
    assert fetched["sha256"] == report["sha256"]
    pulled = command(mesh, "pull", "quant:words-Q4_0")
    assert pulled.returncode == 0, pulled.stderr
    assert mesh.call("GET", "/models/words-Q8_0").json()["quality"] == report["report"]
    assert f"{report['report']['bits_per_weight']:.2f} bits" in command(mesh, "describe", "words-Q8_0").stdout
    server = mesh.serve("words-Q8_0")
    body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 4, "model": "any"}
    answer = mesh.http.post(mesh.url("inference", f"/{server['server_uuid']}/v1/chat/completions"), json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].startswith("The mesh is up")


@pytest.fixture
def recipes(mesh: RunningMesh) -> dict[str, str]:
    """What stands for the places of the guide, and for types that the stand-in of the quantiser does not make."""
    source = mesh.home.parent / "words-f16.gguf"
    write_checkpoint(source, mesh.home / "model-folder")
    # One name for each place of the guide: a repository has no suffix.
    return {
        "hf:owner/model-F16-GGUF": f"{source} --name model-F16",
        "hf:owner/model ": "./model-folder/ --name other ",
        "Q4_K_M": "Q4_0",
    }


def test_the_recipes_of_the_guide_work_as_written(mesh: RunningMesh, recipes: dict[str, str]) -> None:
    lines = [step for block in fences("docs/guide/quantise.md", "console") for step, _ in steps(block)]
    assert len(lines) == 8
    for line in lines:
        for place, here in recipes.items():
            line = line.replace(place, here)
        done = command(mesh, *shlex.split(line, comments=True)[1:])
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.usefixtures("made")
def test_jobs_and_variants_are_seen_and_removed_by_the_command(mesh: RunningMesh) -> None:
    assert command(mesh, "quantize", "words-f16", "--types", "Q5_0", "--name", "again", "--wait").returncode == 0
    jobs = json.loads(command(mesh, "jobs", "-o", "json").stdout)
    job = next(job for job in jobs if job["name"] == "again")
    assert (job["state"], job["types"]) == ("SUCCEEDED", ["Q5_0"])
    shown = command(mesh, "jobs", "show", job["job_id"]).stdout
    assert [line.split()[0] for line in shown.splitlines()[-4:]] == ["fetch", "quantize", "verify", "publish"]
    for words in (("jobs", "rm", job["job_id"]), ("variants", "rm", "again-Q5_0")):
        assert command(mesh, *words).returncode == 0
    assert "again-Q5_0" not in command(mesh, "variants").stdout
    refused = command(mesh, "quantize", "words-f16", "--types", "Q5KM")
    assert refused.returncode == 2
    assert "Q5_K_M" in refused.stderr
    assert "no model nobody" in command(mesh, "pull", "quant:nobody").stderr
    assert "did you mean words-Q8_0?" in command(mesh, "pull", "quant:words-Q8").stderr


def test_the_command_makes_variants_of_a_checkpoint(mesh: RunningMesh, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(mesh.home.parent / "words-f16.gguf", tmp_path / "Words Instruct", parts=2)
    shown = command(mesh, "quantize", f"{checkpoint}", "--types", "Q8_0", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    ended = command(mesh, "quantize", f"{checkpoint}/", "--types", "Q8_0", "--wait")
    assert ended.returncode == 0, ended.stderr
    assert "convert" in ended.stderr
    row = next(line for line in ended.stdout.splitlines() if "Words-Instruct-Q8_0" in line)
    assert row.endswith("Words Instruct")
    assert str(tmp_path) not in mesh.call("GET", "/models/Words-Instruct-Q8_0", "quant").text
    pulled = command(mesh, "pull", "quant:Words-Instruct-Q8_0")
    assert pulled.returncode == 0, pulled.stderr
    server = mesh.serve("Words-Instruct-Q8_0")
    body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 4, "model": "any"}
    answer = mesh.http.post(mesh.url("inference", f"/{server['server_uuid']}/v1/chat/completions"), json=body)
    assert answer.json()["choices"][0]["message"]["content"].startswith("The mesh is up"), answer.text


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("./nowhere", "is not there"),
        ("./x.gguf", "llamesh pull ./x.gguf"),
        ("./empty", "no config.json"),
        ("hf:owner/repo:Q4_K_M", "a checkpoint is a whole repository: hf:owner/repo"),
        ("s3://place/key", "hf:OWNER/REPO"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_the_command(mesh: RunningMesh, word: str, said: str) -> None:
    (mesh.home / "x.gguf").write_bytes(b"GGUF")
    (mesh.home / "empty").mkdir(exist_ok=True)
    refused = command(mesh, "quantize", word, "--types", "Q8_0")
    assert refused.returncode != 0
    assert said in refused.stderr


def test_the_command_measures_an_importance_matrix_with_a_text(mesh: RunningMesh, tmp_path: Path) -> None:
    text = tmp_path / "text"
    wanted = ("quantize", "words-f16", "--types", "Q8_0", "--name", "measured", "--calibration", str(text), "--wait")
    for content, words in ((b"", "is empty"), (b"\xff", "is no text in UTF-8"), (b"x" * (2**19 + 1), "is too long")):
        text.write_bytes(content)
        refused = command(mesh, *wanted)
        assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr
    assert command(mesh, *wanted[:-3], "--calibration", "/nowhere").returncode == 3
    # As long as it may be, with a line end, which JSON escapes, in every line: the front door takes its request.
    text.write_text(("What the model will be asked.\n" * 20000)[: 2**19])
    options = {"importance_matrix": True, "calibration_text": text.read_text()}
    request = {"model_uuid": "words-f16", "types": ["Q5KM"], "options": options}
    refused_by_the_service = mesh.call("POST", "/jobs", "quant", json=request)
    assert "Q5_K_M" in refused_by_the_service.json()["message"], refused_by_the_service.text
    text.write_text("What the model will be asked. " * 200)
    made = command(mesh, *wanted)
    assert made.returncode == 0, made.stderr
    assert "imatrix" in made.stderr
    model = mesh.call("GET", "/models/measured-Q8_0", "quant").json()
    assert len(model["report"]["matrix_sha256"]) == 64
    assert mesh.call("POST", "/download/measured-Q8_0", "download").status_code == 200
    until(lambda: ended(mesh, "measured-Q8_0"), 60, "the download")
    assert mesh.call("GET", "/models/measured-Q8_0").json()["quality"] == model["report"]
    estimate = command(mesh, "quantize", "words-f16", "--types", "IQ2_XXS", "--importance-matrix", "--dry-run")
    assert "importance matrix" not in estimate.stdout + estimate.stderr


def test_a_watch_of_a_job_is_json_by_line_and_ends_with_the_job(mesh: RunningMesh) -> None:
    job = mesh.call(
        "POST", "/jobs", "quant", json={"model_uuid": "words-f16", "types": ["Q5_1"], "name": "seen"}
    ).json()
    own = bearer(mesh.token)
    address = mesh.url("quant", f"/jobs/{job['job_id']}:watch")
    with mesh.http.stream("GET", address, headers=own, timeout=120) as stream:
        assert stream.status_code == 200
        events = [json.loads(line) for line in stream.iter_lines() if line]
    assert events[-1]["job"]["state"] == "QUANT_JOB_STATE_SUCCEEDED"
    assert len([event for event in events if "job" in event]) > 1
    with mesh.http.stream("GET", mesh.url("quant", "/jobs:watch"), headers=own, timeout=60) as stream:
        first = json.loads(next(line for line in stream.iter_lines() if line))
    assert first["job"]["job_id"] == job["job_id"]


def test_a_dry_run_shows_all_types_and_makes_none(mesh: RunningMesh) -> None:
    shown = command(mesh, "quantize", "words-f16", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert {"Q8_0", "Q4_K_M", "IQ1_S"} <= set(shown.stdout.split())
    assert "are free" in shown.stderr
    refused = command(mesh, "quantize", "words-f16", "--dry-run", "--types", "IQ1_S")
    assert refused.returncode != 0
    assert "importance matrix" in refused.stderr
    assert command(mesh, "quantize", "words-f16").returncode == 2


def path_of(method: Method) -> tuple[str, str]:
    way = method.bindings[0]
    return way.verb, way.path.replace("{job_id}", "nobody").replace("{model_uuid}", "nobody")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_only_callers_who_may_manage_are_answered(mesh: RunningMesh, method: Method) -> None:
    people = People(mesh)
    try:
        verb, path = path_of(method)
        name = f"q-{method.name.lower()}"
        tokens = {"": 401, people.user(f"{name}-i", "ROLE_INFERENCE"): 403, people.user(f"{name}-u"): None}
        for token, wanted in tokens.items():
            headers = bearer(token) if token else {}
            body = {"json": {}} if verb == "POST" else {}
            answer = httpx.request(verb, mesh.url("quant", path), headers=headers, **body)  # type: ignore[arg-type]
            if wanted:
                assert answer.status_code == wanted, answer.text
            else:
                assert answer.status_code in (200, 400, 404), answer.text
    finally:
        people.close()


def test_a_matrix_is_handed_over_to_a_job_and_used(mesh: RunningMesh, tmp_path: Path) -> None:
    matrix = tmp_path / "words.dat"
    source = mesh.home.parent / "words-f16.gguf"
    write_older_matrix(matrix, {name: range(1, width + 1) for name, width in columns_of(source).items()})
    words = ("quantize", "words-f16", "--types", "Q5_0", "--name", "given", "--imatrix", str(matrix))
    assert command(mesh, *words, "--dry-run").returncode == 0
    assert not any((mesh.home / "import" / "handed-over").glob("*/words.dat"))
    made = command(mesh, *words, "--wait")
    assert made.returncode == 0, made.stderr
    digest = hashlib.sha256(matrix.read_bytes()).hexdigest()
    assert mesh.call("GET", "/models/given-Q5_0", "quant").json()["report"]["matrix_sha256"] == digest

    placed = mesh.home / "import" / "words.dat"
    placed.write_bytes(matrix.read_bytes())
    request = {"model_uuid": "words-f16", "types": ["Q5_0"], "name": "by-rest"}
    job = mesh.call(
        "POST", "/jobs", "quant", json={**request, "options": {"importance_matrix_source": placed.as_uri()}}
    ).json()
    assert job["options"]["importance_matrix_source"] == "words.dat"
    until(lambda: mesh.call("GET", "/models/by-rest-Q5_0", "quant").status_code == 200, 60, "the variant")
    assert mesh.call("GET", "/models/by-rest-Q5_0", "quant").json()["report"]["matrix_sha256"] == digest
    outside = {**request, "name": "x", "options": {"importance_matrix_source": "file:///etc/passwd"}}
    refused = mesh.call("POST", "/jobs", "quant", json=outside)
    assert "lies in no folder that models may be imported from" in refused.text


def test_the_rest_of_8300_is_not_at_8200_and_the_mesh_says_how_the_service_does(mesh: RunningMesh) -> None:
    elsewhere = mesh.call("GET", "/jobs")
    assert (elsewhere.status_code, "8300, or LLAMESH_QUANT_PORT" in elsewhere.text) == (404, True), elsewhere.text
    assert "8300" not in mesh.call("GET", "/nothing").text
    assert mesh.call("GET", "/jobs", "quant").status_code == 200
    assert mesh.components()["quant"] == "OK"
    assert "words-f16" in mesh.call("GET", "/models").text
    assert "words-f16.gguf" not in mesh.call("GET", "/models", "quant").text


@pytest.mark.usefixtures("made")
def test_a_backup_with_models_has_the_variants(mesh: RunningMesh, tmp_path: Path) -> None:
    file = tmp_path / "mesh.backup"
    assert command(mesh, "backup", str(file), "--models").returncode == 0
    with tarfile.open(file) as archive:
        names = archive.getnames()
    key = mesh.call("GET", "/models/words-Q8_0", "quant").json()["object_key"]
    assert {"data/quant.db", f"llm-models/{key}"} <= set(names)
