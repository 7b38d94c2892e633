"""Build the programs for tests/cluster from the modules that go.mod pins, into .tools/bin; only missing or outdated ones.

Needs Go. To build one program: `python tools/build.py grpcurl`. The programs that benchmarks compare with, Helm, and the command of Argo,
which takes longer than all others but Kubernetes, are built only if named: `python tools/build.py argo helm mc rclone`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
BIN = TOOLS.parent / ".tools" / "bin"
PROGRAMS = {
    "grpcurl": "github.com/fullstorydev/grpcurl/cmd/grpcurl",
    "minio": "github.com/minio/minio",
}
OWN_MODULES = {
    "versitygw": "github.com/versity/versitygw/cmd/versitygw@v1.8.0",
    "mc": "github.com/minio/mc@v0.0.0-20250313080218-cf909e1063a9",
    "rclone": "github.com/rclone/rclone@v1.76.0",
}
"""Programs that are built in modules of their own, because their requirements exclude each other's."""
ARGO = "github.com/argoproj/argo-workflows/v4@v4.0.5"
"""Argo Workflows: the CRD of workflows, and its command, for `argo lint`."""
ARGO_DEFINITION = "argo-workflows.yaml"
KUBERNETES = TOOLS / "kubernetes"
"""A module of this project: every program of the local cluster in one file (tools.cluster), and two small ones."""
HELM = TOOLS / "helm"
"""A module that pins Helm, with the packages of Kubernetes in the versions of the local cluster, so that they are compiled once."""
TESTED = (*PROGRAMS, "versitygw", ARGO_DEFINITION, "kubernetes")
"""What tests/cluster needs."""


def stale(name: str) -> bool:
    """Whether a program is missing or older than the pinned versions."""
    program = BIN / name
    own = {"kubernetes": [*KUBERNETES.glob("**/*.go"), KUBERNETES / "go.mod"], "helm": [HELM / "go.mod"]}
    sources = own.get(name, [TOOLS / "go.mod"])
    return not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def argo_module() -> Path:
    """Return the folder of Argo's module, downloaded now if it is not there."""
    found = subprocess.run(["go", "mod", "download", "-json", ARGO], cwd=TOOLS, check=True, stdout=subprocess.PIPE)
    return Path(json.loads(found.stdout)["Dir"])


def copy_argo_definition() -> None:
    """Take the CRD of workflows from the module."""
    shutil.copyfile(argo_module() / "manifests/base/crds/full/argoproj.io_workflows.yaml", BIN / ARGO_DEFINITION)


def build_argo(environment: dict[str, str], options: list[str]) -> None:
    """Build the command `argo`.

    It embeds the pages of a web UI that are not in the module, so it is built from a copy of the module with an empty page.
    """
    module, copy = argo_module(), BIN.parent / "argo"
    shutil.rmtree(copy, ignore_errors=True)
    # Modules are read-only; the copy's files get the usual permissions.
    shutil.copytree(module, copy, copy_function=shutil.copyfile)
    for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    page = copy / "ui" / "dist" / "app" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<title>none</title>", encoding="utf-8")
    command = ["go", "build", "-mod=mod", *options, "-o", str(BIN / "argo"), "./cmd/argo"]
    subprocess.run(command, cwd=copy, env=environment, check=True)
    shutil.rmtree(copy)


def build_kubernetes(environment: dict[str, str]) -> None:
    """Build the programs of the local cluster: most packages are shared by several of them, so all are one program, linked once."""
    asked = ["go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"]
    version = subprocess.run(asked, cwd=KUBERNETES, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    major, minor, _ = version.removeprefix("v").split(".", 2)
    # Clients ask the API server for its version, and refuse one that says v0.0.0.
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    stamps = [f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items()]
    for name, package in {"pause": "./pause", "relay": "./relay", "kubernetes": "."}.items():
        command = [*of_kubernetes(stamps), "-o", str(BIN / name), package]
        subprocess.run(command, cwd=KUBERNETES, env=environment, check=True)


def build_helm(environment: dict[str, str]) -> None:
    """Build Helm, with its version."""
    asked = ["go", "list", "-m", "-f", "{{.Version}}", "helm.sh/helm/v4"]
    version = subprocess.run(asked, cwd=HELM, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    stamps = [f"-X helm.sh/helm/v4/internal/version.version={version}"]
    command = [*of_kubernetes(stamps), "-o", str(BIN / "helm"), "helm.sh/helm/v4/cmd/helm"]
    subprocess.run(command, cwd=HELM, env=environment, check=True)


def of_kubernetes(stamps: list[str]) -> list[str]:
    """Return the command that builds a program of Kubernetes' packages. Other options would compile them again."""
    # Without gRPC's tracing pages the linker drops what only they could reach. Debug information, which the linker drops too, costs a tenth
    # of the compiler's time.
    flags = " ".join(["-s", "-w", *stamps])
    return ["go", "build", "-trimpath", "-tags=grpcnotrace", "-gcflags=k8s.io/...=-dwarf=false", f"-ldflags={flags}"]


def main() -> None:
    """Build the programs; exit 1 with the remedy if Go is missing."""
    wanted = [name for name in sys.argv[1:] or TESTED if stale(name)]
    if not wanted:
        return
    if shutil.which("go") is None:
        sys.exit("Go is missing: the programs of tests/cluster are built from modules (https://go.dev/doc/install)")
    BIN.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        print(f"building {name} (once)", flush=True)
        environment = {**os.environ, "CGO_ENABLED": "0"}
        options = ["-trimpath", "-ldflags=-s -w"]
        if name == ARGO_DEFINITION:
            copy_argo_definition()
            continue
        if name == "argo":
            build_argo(environment, options)
            continue
        if name == "kubernetes":
            build_kubernetes(environment)
            continue
        if name == "helm":
            build_helm(environment)
            continue
        if name in PROGRAMS:
            command = ["go", "build", *options, "-o", str(BIN / name), PROGRAMS[name]]
        else:
            environment["GOBIN"] = str(BIN)
            command = ["go", "install", *options, OWN_MODULES[name]]
        subprocess.run(command, cwd=TOOLS, env=environment, check=True)


if __name__ == "__main__":
    main()
