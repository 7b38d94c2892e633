"""The local cluster of tools/cluster, driven by its command as a person does it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from tests.cluster.containers import Containers
from tests.mesh.running import ROOT
from tools.cluster.layout import PROGRAM, Layout
from tools.infra import NAMESPACE


class Cluster:
    """A cluster in a folder."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder)

    def command(self, *words: str | Path, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        words = (sys.executable, "-m", "tools.cluster", f"--folder={self.layout.folder}", *words)
        done = subprocess.run(words, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=300, check=False)
        assert not check or done.returncode == 0, done.stderr[-6000:]
        return done

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl with the kubeconfig, from outside."""
        command = [str(PROGRAM), "kubectl", f"--kubeconfig={self.layout.kubeconfig}", *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
        return done

    def apply(self, *objects: object) -> None:
        """Create or change objects."""
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))

    def processes(self) -> list[psutil.Process]:
        """What started the first process of the namespaces, and all that descends from it."""
        outer = psutil.Process(int(self.layout.process.read_text(encoding="ascii"))).parent()
        assert outer is not None
        return [outer, *outer.children(recursive=True)]

    def groups(self) -> list[Path]:
        """Its control groups."""
        return [Path(line) for line in self.layout.control_groups.read_text(encoding="utf-8").splitlines()]

    def start(self, *words: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a program in the network of the node. It ends with the cluster."""
        command = [sys.executable, "-m", "tools.cluster", f"--folder={self.layout.folder}", "run", *map(str, words)]
        with log.open("ab") as output:
            return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@contextmanager
def cluster_with_image(containers: Containers, prefix: str) -> Iterator[tuple[Cluster, Path]]:
    """A cluster that has the image and the restricted namespace of the mesh, and a folder, for a `with` block."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    cluster = Cluster(folder / "cluster")
    try:
        cluster.command("up", "--port=0")
        archive = folder / "image.tar"
        containers.save(archive)
        cluster.command("load", archive)
        archive.unlink()
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.kubectl("label", f"namespace/{NAMESPACE}", "pod-security.kubernetes.io/enforce=restricted")
        yield cluster, folder
    finally:
        cluster.command("down")
        shutil.rmtree(folder)
