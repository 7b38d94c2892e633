"""Create or delete the Kubernetes cluster of a developer: `make cluster`, `make cluster-delete`.

It is made by k3d, else by kind, if Docker runs; else by tools.cluster, which needs Linux and root but no Docker.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence

NAME = "inference-cluster"
"""Name of the cluster, as the reference deployment called it."""
LOCAL = (sys.executable, "-m", "tools.cluster")
COMMANDS: dict[str, dict[str, Sequence[Sequence[str]]]] = {
    "k3d": {
        "create": [("k3d", "cluster", "create", NAME)],
        "delete": [("k3d", "cluster", "delete", NAME)],
    },
    "kind": {
        "create": [("kind", "create", "cluster", "--name", NAME)],
        "delete": [("kind", "delete", "cluster", "--name", NAME)],
    },
    "local": {
        "create": [(sys.executable, "tools/build.py", "kubernetes"), (*LOCAL, "up")],
        "delete": [(*LOCAL, "down")],
    },
}
"""For each kind of cluster, the commands that create and delete it."""


def chosen(programs: frozenset[str], docker_runs: bool) -> str:
    """Return the kind of cluster for a machine that has these programs."""
    found = [name for name in ("k3d", "kind") if name in programs and docker_runs]
    return found[0] if found else "local"


def _docker_runs() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def main() -> None:
    """Run the commands; exit with the code of the first that fails."""
    if sys.argv[1:] not in (["create"], ["delete"]):
        sys.exit("usage: python -m tools.any_cluster create|delete")
    kind = chosen(frozenset(name for name in ("k3d", "kind") if shutil.which(name)), _docker_runs())
    print(
        f"{sys.argv[1]} a cluster with {'tools.cluster (docs/guide/local-cluster.md)' if kind == 'local' else kind}",
        flush=True,
    )
    for command in COMMANDS[kind][sys.argv[1]]:
        done = subprocess.run(command, check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
