"""Build the programs for tests/cluster from the modules that go.mod pins, into .tools/bin; only missing or outdated ones.

Needs Go. To build one program: `python tools/build.py grpcurl`. The programs that benchmarks compare with are built only if named:
`python tools/build.py mc rclone`.
"""

from __future__ import annotations

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
TESTED = (*PROGRAMS, "versitygw")
"""The programs that tests/cluster needs."""


def stale(name: str) -> bool:
    """Whether a program is missing or older than the pinned versions."""
    program = BIN / name
    return not program.exists() or program.stat().st_mtime < (TOOLS / "go.mod").stat().st_mtime


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
        if name in PROGRAMS:
            command = ["go", "build", *options, "-o", str(BIN / name), PROGRAMS[name]]
        else:
            environment["GOBIN"] = str(BIN)
            command = ["go", "install", *options, OWN_MODULES[name]]
        subprocess.run(command, cwd=TOOLS, env=environment, check=True)


if __name__ == "__main__":
    main()
