"""Podman and Buildah without a registry and without a service manager: build deploy/container/Dockerfile and run what it makes.

The image that the Dockerfile begins with is replaced by a Debian of this machine's release with its Python, made by mmdebstrap under the
same name; every step of the Dockerfile is run as it stands. Everything lies in one folder and in one mount namespace, and ends with them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.mesh.running import ROOT

NEEDED = ("podman", "buildah", "mmdebstrap", "unshare", "nsenter")
BASE = "docker.io/library/python:3.11-slim"
IMAGE = "localhost/llamesh"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""What pip trusts; the container reaches the package index as this machine does."""
# crun refuses a machine that shows both versions of control groups. Nothing here uses them.
_NAMESPACE = "umount /sys/fs/cgroup/unified 2>/dev/null; echo ready; exec sleep infinity"
_LIMITS = ("--ulimit=nofile=8192:8192", "--ulimit=nproc=4096:4096")
"""Podman's own defaults are more than a root without all capabilities can give."""


def lacking() -> str:
    """Why containers cannot be built and run here, or nothing."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if platform.system() != "Linux" or os.geteuid() != 0:
        return "it needs Linux and root: it makes a root file system and mounts it"
    return f"not installed: {', '.join(missing)}" if missing else ""


class Containers:
    """Images, volumes and containers of one test."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="containers-"))
        places = {"--root": "images", "--runroot": "run"}
        self._storage = [word for flag, name in places.items() for word in (flag, str(self._folder / name))]
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _NAMESPACE],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def _run(
        self, *words: str | Path, check: bool = True, stdin: str = "", seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["nsenter", f"--target={self._holder.pid}", "--mount", *map(str, words)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def buildah(self, *words: str | Path, seconds: float = 300) -> str:
        """Run buildah; its output."""
        return self._run("buildah", *self._storage, *words, seconds=seconds).stdout.strip()

    def podman(
        self, *words: str | Path, check: bool = True, stdin: str = "", seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run podman."""
        own = [*self._storage, "--tmpdir", self._folder / "tmp", "--cgroup-manager=cgroupfs"]
        return self._run("podman", *own, *words, check=check, stdin=stdin, seconds=seconds)

    def make_base(self) -> None:
        """Make the image that the Dockerfile begins with."""
        archive = self._folder / "base.tar"
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        apt = Path("/etc/apt")
        sources = [
            path for path in (apt / "sources.list", *(apt / "sources.list.d").glob("*.sources")) if path.exists()
        ]
        packages = "--include=python3-pip,python3-venv,ca-certificates"
        self._run("mmdebstrap", "--quiet", "--variant=minbase", packages, release, archive, *sources)
        made = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", made, archive, "/")
        for file in filter(Path.exists, (AUTHORITIES, Path("/etc/pip.conf"))):
            self.buildah("copy", "--quiet", made, file, file)
        # Debian's own pip refuses what that of the replaced image does.
        root = Path(self.buildah("mount", made))
        self._run("find", root / "usr" / "lib", "-name", "EXTERNALLY-MANAGED", "-delete")
        self.buildah("umount", made)
        self.buildah("commit", "--quiet", "--rm", made, BASE)
        archive.unlink()

    def build(self, wheel: Path) -> None:
        """Build the image by deploy/container/Dockerfile, from the wheel alone."""
        context = self._folder / "context"
        (context / "dist").mkdir(parents=True)
        shutil.copy(wheel, context / "dist")
        file = ROOT / "deploy" / "container" / "Dockerfile"
        # Docker's format: the other one has no health checks.
        how = ["--isolation=chroot", "--pull-never", "--format=docker", "--build-arg=EXTRAS=mesh,engine,kubernetes"]
        self.buildah("build", *how, "--file", file, "--tag", IMAGE, context, seconds=600)

    def save(self, archive: Path) -> None:
        """Write the image as an archive that other programs for containers read."""
        self.buildah("push", "--quiet", IMAGE, f"docker-archive:{archive}:{IMAGE}:latest")

    def run(self, name: str, *words: str | Path) -> None:
        """Start a container in a network of its own, which has loopback only; `words` are flags, image and command."""
        # A service manager would run the health check at its interval: here the test runs it.
        alone = ["--network=none", "--cgroups=disabled", "--health-interval=disable", *_LIMITS]
        self.podman("run", "--detach", "--pull=never", "--name", name, *alone, *words)

    def inspect(self, name: str, field: str) -> str:
        """A field of a container."""
        return self.podman("inspect", "--format", f"{{{{.{field}}}}}", name).stdout.strip()

    def close(self) -> None:
        """End and remove everything."""
        try:
            self.podman("rm", "--all", "--force", "--time=0", check=False)
            self.podman("rmi", "--all", "--force", check=False)
        finally:
            self._holder.kill()
            self._holder.wait()
            with suppress(OSError):
                shutil.rmtree(self._folder)
