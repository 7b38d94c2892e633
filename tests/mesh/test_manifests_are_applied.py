"""`apply`, `diff`, `delete` and `-o yaml` against a real mesh: idempotent, ordered, pruned only of what apply itself made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from engine import sentence
from tests.mesh.running import COMMAND_SECONDS, RunningMesh
from tests.split_models import write_adapter
from tests.terminal import terminal

Command = Callable[..., subprocess.CompletedProcess[str]]

MANIFEST = """\
apiVersion: llamesh.dev/v1alpha1
kind: Key
metadata: {name: manifest-ci}
spec: {scopes: ["infer:*"], contract: manifest-team, expireDays: 7, secretFile: ci.token}
---
apiVersion: llamesh.dev/v1alpha1
kind: ModelServe
metadata: {name: manifest-chat}
spec:
  modelUuid: manifest-model
  modelName: manifest-chat
  idleSleep: 600s
  parameters: {ctxSize: 512, parallel: 1}
---
apiVersion: llamesh.dev/v1alpha1
kind: User
metadata: {name: manifest-ada}
spec: {role: inference, contract: manifest-team, passwordFrom: {env: ADA_PASSWORD}}
---
apiVersion: llamesh.dev/v1alpha1
kind: Contract
metadata: {name: manifest-team}
spec: {maxConcurrentRequests: 3}
---
apiVersion: llamesh.dev/v1alpha1
kind: Model
metadata: {name: manifest-model}
spec: {source: SOURCE, name: manifest-model.gguf}
"""

LABELS = [
    "Model/manifest-model",
    "Contract/manifest-team",
    "User/manifest-ada",
    "ModelServe/manifest-chat",
    "Key/manifest-ci",
]


@pytest.fixture
def folder(mesh: RunningMesh, tmp_path: Path) -> Path:
    source = mesh.home / "import" / "manifest-model.gguf"
    source.parent.mkdir(parents=True, exist_ok=True)
    sentence.write(source)
    (tmp_path / "mesh.yaml").write_text(MANIFEST.replace("SOURCE", source.as_uri()))
    return tmp_path


@pytest.fixture
def environment(mesh: RunningMesh, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "LLAMESH_HOME": str(mesh.home),
        "LLAMESH_URL": mesh.url("gateway", ""),
        "LLAMESH_TOKEN": mesh.token,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "ADA_PASSWORD": "correct horse",
    }


@pytest.fixture
def llamesh(folder: Path, environment: dict[str, str]) -> Command:
    def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "llamesh.cli.main", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return command


def said(words: str) -> list[str]:
    return [f"{label} {words}" for label in LABELS]


def without_id(line: str) -> str:
    return re.sub(r" ?\([^)]*\)", "", line)


def test_a_manifest_is_applied_changed_and_removed(llamesh: Command, folder: Path, mesh: RunningMesh) -> None:
    path = folder / "mesh.yaml"
    assert llamesh("diff", "-f", "mesh.yaml", code=1).stdout.splitlines() == said("would be created")
    assert llamesh("apply", "-f", "mesh.yaml", "--dry-run").stdout.splitlines() == said("would be created")
    assert llamesh("apply", "-f", "mesh.yaml", "--wait").stdout.splitlines() == [
        *said("created"),
        "ModelServe/manifest-chat is ready",
    ]
    token = (folder / "ci.token").read_text().strip()
    assert (folder / "ci.token").stat().st_mode & 0o777 == 0o600
    answer = httpx.post(
        mesh.url("inference", "/v1/completions"),
        headers={"authorization": f"Bearer {token}"},
        json={"model": "manifest-chat", "prompt": "x", "max_tokens": 1},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text

    assert llamesh("apply", "-f", "mesh.yaml").stdout.splitlines() == said("unchanged")
    assert llamesh("diff", "-f", "mesh.yaml").stdout == ""

    text = path.read_text()
    path.write_text(text.replace("ctxSize: 512", "ctxSize: 1024").replace("maxConcurrentRequests: 3", ""))
    changes = [
        "Contract/manifest-team WORDS",
        "  spec.max_concurrent_requests: 3 -> 0",
        "ModelServe/manifest-chat WORDS",
        "  spec.parameters.ctx_size: 512 -> 1024",
    ]
    assert llamesh("diff", "-f", "mesh.yaml", code=1).stdout.splitlines() == [
        line.replace("WORDS", "would be updated") for line in changes
    ]
    assert llamesh("apply", "-f", "mesh.yaml").stdout.splitlines()[-4:] == [
        line.replace("WORDS", "updated") for line in changes
    ]
    assert llamesh("diff", "-f", "mesh.yaml").stdout == ""

    removed = llamesh("delete", "-f", "mesh.yaml").stdout.splitlines()
    assert [without_id(line) for line in removed] == said("removed")[::-1]
    assert re.fullmatch(r"ModelServe/manifest-chat \([0-9a-f-]{36}\) removed", removed[1])
    assert llamesh("delete", "-f", "mesh.yaml").stdout.splitlines() == [
        f"{label} is not there" for label in reversed(LABELS)
    ]


def test_where_engines_run_is_refused_on_one_machine(llamesh: Command, folder: Path, mesh: RunningMesh) -> None:
    text = (folder / "mesh.yaml").read_text()
    model, server = text.split("---\n")[4], text.split("---\n")[1]
    (folder / "model.yaml").write_text(model)
    (folder / "placed.yaml").write_text(server + "  placement: {gpus: {count: 1}}\n")
    llamesh("apply", "-f", "model.yaml", "--wait")
    failed = llamesh("apply", "-f", "placed.yaml", code=5).stderr
    assert "placement is for engines that are pods" in failed
    assert "spec.placement" in failed
    answer = httpx.post(
        mesh.url("gateway", "/serve"),
        headers={"authorization": f"Bearer {mesh.token}"},
        json={"model_uuid": "manifest-model", "placement": {"nodeSelector": {"zone": "a"}, "image": "engine:1"}},
    )
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (400, "PLACEMENT_NEEDS_KUBERNETES")
    assert answer.json()["details"][0]["metadata"]["field"] == "placement"
    assert "manifest-chat" not in llamesh("status").stdout
    llamesh("delete", "-f", "model.yaml")


def test_a_revoked_key_is_made_again_in_its_file(llamesh: Command, folder: Path) -> None:
    (folder / "key.yaml").write_text(MANIFEST.split("---\n")[0].replace(", contract: manifest-team", ""))
    llamesh("apply", "-f", "key.yaml")
    first = (folder / "ci.token").read_text()
    llamesh("delete", "-f", "key.yaml")
    assert llamesh("apply", "-f", "key.yaml").stdout.splitlines() == ["Key/manifest-ci created"]
    assert (folder / "ci.token").read_text() != first
    llamesh("delete", "-f", "key.yaml")


def test_an_empty_password_file_is_refused_before_anything_is_created(llamesh: Command, folder: Path) -> None:
    text = (folder / "mesh.yaml").read_text().replace("{env: ADA_PASSWORD}", "{file: password}")
    (folder / "mesh.yaml").write_text(text)
    (folder / "password").touch()
    failed = llamesh("apply", "-f", "mesh.yaml", code=2)
    assert failed.stdout == ""
    assert "nothing was changed" in failed.stderr
    assert "spec.password_from.file: password holds no password" in failed.stderr


def test_resources_printed_as_yaml_are_applied_without_a_change(llamesh: Command, folder: Path) -> None:
    llamesh("apply", "-f", "mesh.yaml", "--wait")
    commands = (
        ["models"],
        ["status"],
        ["describe", "manifest-chat"],
        ["users", "list"],
        ["contracts", "list"],
        ["keys", "list"],
    )
    for command in commands:
        text = llamesh(*command, "-o", "yaml").stdout
        assert "apiVersion: " in text
        (folder / "again.yaml").write_text(text)
        assert llamesh("diff", "-f", "again.yaml").stdout == "", command
        lines = llamesh("apply", "-f", "again.yaml").stdout.splitlines()
        assert lines
        assert all(line.endswith(" unchanged") for line in lines), command
    llamesh("delete", "-f", "mesh.yaml")


def test_only_resources_created_by_apply_are_pruned(
    llamesh: Command, folder: Path, environment: dict[str, str]
) -> None:
    contract = "apiVersion: llamesh.dev/v1alpha1\nkind: Contract\nmetadata: {{name: {}}}\n"
    llamesh("contracts", "create", "prune-theirs")
    both = "---\n".join(contract.format(name) for name in ("prune-ours", "prune-theirs", "prune-kept"))
    (folder / "p.yaml").write_text(both)
    llamesh("apply", "-f", "p.yaml")
    (folder / "p.yaml").write_text(contract.format("prune-kept"))
    environment["LLAMESH_URL"] = environment["LLAMESH_URL"].replace("127.0.0.1", "localhost")
    assert "--prune removes nothing" in llamesh("apply", "-f", "p.yaml", "--prune", "--set", "another").stderr
    assert llamesh("apply", "-f", "p.yaml").stdout.splitlines() == ["Contract/prune-kept unchanged"]
    dry = llamesh("apply", "-f", "p.yaml", "--prune", "--dry-run").stdout.splitlines()
    assert dry == ["Contract/prune-kept unchanged", "Contract/prune-ours would be removed"]
    assert llamesh("apply", "-f", "p.yaml", "--prune").stdout.splitlines() == [
        "Contract/prune-kept unchanged",
        "Contract/prune-ours removed",
    ]
    assert llamesh("apply", "-f", "p.yaml", "--prune").stdout.splitlines() == ["Contract/prune-kept unchanged"]
    left = {item["display_name"] for item in json.loads(llamesh("contracts", "list", "-o", "json").stdout)}
    assert {"prune-theirs", "prune-kept"} <= left
    assert "prune-ours" not in left
    (folder / "p.yaml").write_text(both)
    llamesh("delete", "-f", "p.yaml")


def test_a_failure_lists_finished_resources_and_a_second_apply_continues(llamesh: Command, folder: Path) -> None:
    text = (folder / "mesh.yaml").read_text()
    (folder / "mesh.yaml").write_text(text.replace("  idleSleep: 600s", "  idleSleep: 600s\n  replicas: 1000"))
    failed = llamesh("apply", "-f", "mesh.yaml", code=5)
    assert failed.stdout.splitlines() == said("created")[:3]
    assert "error: ModelServe/manifest-chat: " in failed.stderr
    assert f"  done: {', '.join(LABELS[:3])}\n  not done: {LABELS[4]}\n" in failed.stderr
    assert "run the same command again" in failed.stderr
    assert not (folder / "ci.token").exists()
    (folder / "mesh.yaml").write_text(text)
    again = llamesh("apply", "-f", "mesh.yaml").stdout.splitlines()
    assert again == [*said("unchanged")[:3], *said("created")[3:]]
    llamesh("delete", "-f", "mesh.yaml")


def test_the_example_of_the_reference_applied_again_changes_nothing(llamesh: Command, folder: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "manifests.md"
    example = page.read_text().split("```yaml\n")[1].split("```")[0]
    # Names of this test's own: other tests of the same mesh have a user "ada", too.
    example = re.sub(r"\b(smol|team|ada|chat|ci)\b(?!\.)", r"page-\1", example)
    source = re.search(r"source: (\S+),", (folder / "mesh.yaml").read_text())
    assert source
    (folder / "e.yaml").write_text(example.replace("https://models.example/SmolLM2.gguf", source[1]))
    first = llamesh("apply", "-f", "e.yaml").stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in first] == ["created"] * 5, first
    for verb in ("apply", "diff"):
        lines = llamesh(verb, "-f", "e.yaml").stdout.splitlines()
        assert lines == ([line.replace("created", "unchanged") for line in first] if verb == "apply" else [])
    llamesh("delete", "-f", "e.yaml")


def test_a_model_file_is_named_relative_to_the_manifest(llamesh: Command, folder: Path) -> None:
    (folder / "here").mkdir()
    sentence.write(folder / "here" / "m.gguf")
    model = "apiVersion: llamesh.dev/v1alpha1\nkind: Model\nmetadata: {name: manifest-file}\nspec: {source: m.gguf}\n"
    (folder / "here" / "m.yaml").write_text(model)
    for words in ("created", "unchanged"):
        done = llamesh("apply", "-f", "here/m.yaml")
        assert done.stdout.splitlines() == [f"Model/manifest-file {words}"]
    llamesh("delete", "-f", "here/m.yaml")


@pytest.mark.parametrize("machines", [1, 2])
def test_two_applies_at_once_create_everything_once(
    llamesh: Command, folder: Path, environment: dict[str, str], machines: int
) -> None:
    def started(number: int) -> subprocess.Popen[str]:
        # Another folder for states stands for another machine: nothing but the mesh is shared.
        state = environment["XDG_STATE_HOME"] + str(number % machines)
        return subprocess.Popen(
            [sys.executable, "-m", "llamesh.cli.main", "apply", "-f", "mesh.yaml"],
            cwd=folder,
            env=environment | {"XDG_STATE_HOME": state},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    both = [started(number) for number in range(2)]
    outputs = [one.communicate(timeout=COMMAND_SECONDS) for one in both]
    if machines == 1:
        assert [one.returncode for one in both] == [0, 0], outputs
    assert llamesh("apply", "-f", "mesh.yaml").stdout.splitlines() == said("unchanged"), outputs
    llamesh("delete", "-f", "mesh.yaml")


def test_two_runs_at_once_declare_one_server(llamesh: Command, folder: Path, environment: dict[str, str]) -> None:
    text = (folder / "mesh.yaml").read_text()
    (folder / "mesh.yaml").write_text(text.split("---\n")[-1])
    llamesh("apply", "-f", "mesh.yaml")
    arguments = [sys.executable, "-m", "llamesh.cli.main", "run", "manifest-model", "hi", "--max-tokens", "1"]
    both = [subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(timeout=COMMAND_SECONDS) for one in both] == [0, 0]
    servers = json.loads(llamesh("status", "-o", "json").stdout)
    ours = [item["server_uuid"] for item in servers if item["model_uuid"] == "manifest-model"]
    assert len(ours) == 1
    llamesh("stop", ours[0])
    llamesh("delete", "-f", "mesh.yaml")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_shows_plain_lines(folder: Path, environment: dict[str, str], columns: int) -> None:
    for arguments, lines in (
        (["apply", "-f", "mesh.yaml", "--dry-run"], said("would be created")),
        (["apply", "-f", "mesh.yaml"], ["fetching manifest-model", *said("created")]),
        (["apply", "-f", "mesh.yaml"], said("unchanged")),
        (["delete", "-f", "mesh.yaml"], said("removed")[::-1]),
    ):
        with terminal(arguments, columns, environment, folder) as shown:
            assert shown.end() == 0
        # A line with an id is longer than 60 columns.
        assert without_id("".join(shown.lines)).replace(" ", "") == "".join(lines).replace(" ", "")


def test_a_model_is_declared_with_its_adapters(llamesh: Command, folder: Path, mesh: RunningMesh) -> None:
    model = mesh.home / "import" / "manifest-model.gguf"
    for name in ("style", "law"):
        write_adapter(folder / f"{name}.gguf", model, 0, 0)
    head = f"apiVersion: llamesh.dev/v1alpha1\nkind: Model\nmetadata: {{name: manifest-tuned}}\nspec:\n  source: {model.as_uri()}\n"

    def adapters(*words: str) -> None:
        (folder / "model.yaml").write_text(head + f"  adapters: [{', '.join(words)}]\n")

    def named() -> list[str]:
        [found] = [
            each for each in json.loads(llamesh("models", "-o", "json").stdout) if each["name"] == "manifest-model.gguf"
        ]
        return [file["name"] for file in found["files"][1:]]

    adapters("style=style.gguf")
    assert llamesh("apply", "-f", "model.yaml").stdout.splitlines() == ["Model/manifest-tuned created"]
    assert llamesh("apply", "-f", "model.yaml").stdout.splitlines() == ["Model/manifest-tuned unchanged"]
    assert named() == ["style"]
    adapters("style=style.gguf", "law=law.gguf")
    assert llamesh("apply", "-f", "model.yaml").stdout.splitlines() == [
        "Model/manifest-tuned updated",
        "  spec.adapters: style -> law style",
    ]
    assert named() == ["style", "law"]
    llamesh("delete", "-f", "model.yaml")
