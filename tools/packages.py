"""Fetch nginx and Caddy for tests/cluster as packages of this Debian or Ubuntu into .tools/packages, without installing them.

Nothing of the system changes and no service starts. A program that is on PATH is not fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".tools" / "packages"
PROGRAMS = {"nginx": "usr/sbin/nginx", "caddy": "usr/bin/caddy"}
"""Where each package, which is named like its program, has it."""


def program(name: str) -> str | None:
    """Path of a program: that on PATH, else the fetched one, else None."""
    fetched = FOLDER / PROGRAMS[name]
    return shutil.which(name) or (str(fetched) if fetched.exists() else None)


def fetch(name: str) -> None:
    """Download and unpack a package. subprocess.CalledProcessError if the package cannot be had."""
    root = os.geteuid() == 0
    # As root apt would download as a user who may not write into the folder.
    apt = ["apt-get", "--quiet", "--quiet", *(["--option=APT::Sandbox::User=root"] if root else [])]
    with tempfile.TemporaryDirectory() as folder:
        download = [*apt, "download", name]
        if subprocess.run(download, cwd=folder, check=False, capture_output=True).returncode != 0:
            if root:
                subprocess.run([*apt, "update"], check=True)
            subprocess.run(download, cwd=folder, check=True)
        (archive,) = Path(folder).glob("*.deb")
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "--extract", archive, FOLDER], check=True)


def main() -> None:
    """Fetch what is missing; say what cannot be had, whose tests are then skipped."""
    for name in PROGRAMS:
        if program(name):
            continue
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            print(f"{name} is not fetched: no apt-get here; install it to run its tests", flush=True)
            continue
        print(f"fetching {name} (once)", flush=True)
        fetch(name)


if __name__ == "__main__":
    main()
