"""Starts and stops a cluster, and says whether it runs.

A lock tells whether a cluster runs: the first process of its namespaces holds it as long as it lives, so a killed cluster is seen as ended.
Whoever takes the lock removes what the one before left: its control groups and its files.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.cluster import configuration, control_groups, credentials
from tools.cluster.images import write_image
from tools.cluster.layout import BIN, CONTAINERD, NODE, PAUSE, PROGRAM, ROOT, Layout
from tools.cluster.requirements import UNSHARE, lacking

READY_SECONDS = 180.0
"""Seconds until the cluster is ready; on an idle machine it needs about ten."""
END_SECONDS = 30.0
ADDONS = Path(__file__).with_name("addons.yaml")


class ClusterError(Exception):
    """What went wrong, for a person."""


@contextmanager
def _locked(layout: Layout) -> Iterator[int]:
    """Hold the lock; ClusterError if a cluster holds it."""
    layout.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    with layout.lock.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(f"a cluster runs in {layout.folder}; `down` ends it") from None
        yield lock.fileno()


def runs(layout: Layout) -> bool:
    """Whether a cluster runs or is being started."""
    if not layout.lock.exists():
        return False
    try:
        with _locked(layout):
            return False
    except ClusterError:
        return True


def _clean(layout: Layout) -> None:
    """Remove what an ended cluster left, but for the lock."""
    control_groups.remove(layout)
    for path in layout.folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != layout.lock:
            path.unlink()


def up(layout: Layout, port: int) -> None:
    """Start a cluster and return when its node and its DNS are ready. ClusterError if that fails; then nothing runs."""
    if reason := lacking(layout.folder):
        raise ClusterError(reason)
    with _locked(layout) as lock:
        _clean(layout)
        for folder in (layout.logs, layout.state):
            folder.mkdir()
        try:
            listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise ClusterError(f"port {port}: {error.strerror}; choose another one with --port") from error
        credentials.write(layout, listener.getsockname()[1])
        configuration.write(layout)
        with listener, (layout.logs / "node.log").open("wb") as log:
            node = [sys.executable, "-m", "tools.cluster.node", str(layout.folder), str(listener.fileno())]
            isolated = [*UNSHARE, "--kill-child"]
            subprocess.Popen(
                [*isolated, *node],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(), lock),
                start_new_session=True,
                preexec_fn=lambda: control_groups.enter(layout),
            )
    try:
        _await_ready(layout)
    except BaseException:
        _end(layout)
        raise


def _await_ready(layout: Layout) -> None:
    deadline = time.monotonic() + READY_SECONDS
    pause = layout.state / "pause.tar"
    write_image(pause, PAUSE, {"pause": BIN / "pause"}, ["/pause"])

    def until(*words: str | Path, inside: bool = False) -> None:
        while True:
            if not runs(layout):
                raise ClusterError(f"the cluster ended while it started\n{_logs(layout)}")
            done = run(layout, words) if inside else kubectl(layout, *words)
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"not ready after {READY_SECONDS:.0f} s: {done.stderr}\n{_logs(layout)}")
            time.sleep(0.1)

    until(*_ctr("images", "import", str(pause)), inside=True)
    until("get", "--raw=/readyz")
    until("apply", "--filename", ADDONS)
    # The controller makes the first one, and admission refuses pods without it.
    until("get", "serviceaccount/default", "--namespace=default")
    until("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=20s")
    until("rollout", "status", "deployment/coredns", "--namespace=kube-system", "--timeout=20s")


def _logs(layout: Layout) -> str:
    tails = []
    for log in sorted(layout.logs.glob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        tails += [f"--- {log}", *(line[:300] for line in lines)]
    return "\n".join(tails)


def _end(layout: Layout) -> None:
    """End all processes of the cluster and remove its control groups; its files stay."""
    deadline = time.monotonic() + END_SECONDS
    while runs(layout):
        # The file appears a moment after the lock was taken.
        if layout.process.exists() and (process := layout.process.read_text(encoding="ascii")):
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ClusterError(f"process {layout.process} does not end")
        time.sleep(0.05)
    with _locked(layout):
        control_groups.remove(layout)


def down(layout: Layout) -> None:
    """End the cluster, or what a killed one left, and remove its files."""
    if not layout.folder.exists():
        return
    _end(layout)
    with _locked(layout):
        _clean(layout)


def _ctr(*words: str) -> list[str]:
    return ["ctr", "--address", CONTAINERD, "--namespace", "k8s.io", *words]


def run(layout: Layout, words: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a command in the node's mounts and network."""
    return subprocess.run(entered(layout, words), capture_output=True, text=True, check=False)


def entered(layout: Layout, words: Sequence[str | Path]) -> list[str]:
    """Return the words that run a command in the node's mounts and network. ClusterError if no cluster runs."""
    if not runs(layout):
        raise ClusterError(f"no cluster runs in {layout.folder}")
    process = layout.process.read_text(encoding="ascii") if layout.process.exists() else "0"
    return ["nsenter", f"--target={process}", "--net", "--mount", "--pid", "--", *map(str, words)]


def load(layout: Layout, archive: Path) -> None:
    """Import the images of an archive. ClusterError if containerd refuses them."""
    done = run(layout, _ctr("images", "import", str(archive.resolve())))
    if done.returncode:
        raise ClusterError(f"{archive}: {done.stderr.strip()}")


def kubectl(layout: Layout, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run kubectl as the administrator."""
    command = [PROGRAM, "kubectl", f"--kubeconfig={layout.kubeconfig}", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
