"""The targets of the reference deployment are all there; those that one machine has no use for say where they went."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = (
    *("all", "deps", "check-deps", "status", "logs", "stop", "restart", "clean", "db-shell", "db-status"),
    *("cluster", "cluster-delete"),
)
LATER = (
    *("docker-build", "docker-load", "infra", "operator-deploy", "services-deploy"),
    *("frontend", "port-forward", "logs-k8s", "rebuild-operator"),
)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Itself run by make, a test must not look like a part of that run.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", HERE)
def test_targets_for_one_machine_run(target: str) -> None:
    asked = make("--dry-run", "--assume-old", ".venv/run.stamp", "--assume-old", ".venv/dev.stamp", target)
    assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize("target", LATER)
def test_kubernetes_targets_say_so_and_fail(target: str) -> None:
    asked = make(target)
    assert asked.returncode != 0
    assert asked.stdout == ""
    assert asked.stderr.splitlines()[0].startswith(f"make {target} comes with the Kubernetes release")


def test_help_lists_every_target() -> None:
    shown = make("help").stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 20
    for target in (*targets, *LATER):
        assert re.search(rf"\b{target}\b", shown), target
    assert max(map(len, shown.splitlines())) <= 120
