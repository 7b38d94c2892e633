"""List what this machine lacks for `make run`, with remedies. Standard library only: it runs before anything is installed."""

from __future__ import annotations

import ctypes.util
import importlib.util
import platform
import shutil
import sys

LIBGOMP = (
    "the system library libgomp.so.1, which the embedded llama.cpp needs: "
    "`apt-get install libgomp1` (Debian, Ubuntu), `dnf install libgomp` (Fedora), `apk add libgomp` (Alpine)"
)
ENVOY = "Envoy, which has no package for this system: `brew install envoy`, or set ENVOY_BIN to the program"

OPTIONAL = {
    "go": "make gen, make test-cluster",
    "node": "the JavaScript client tests",
    "podman": "the container image's test, with buildah, mmdebstrap and root",
}
"""Programs that some targets use, and for what."""


def missing() -> list[str]:
    """Return everything that is missing, with its remedy."""
    lacks = []
    if sys.version_info < (3, 11):  # noqa: UP036 - this runs before anything has checked it
        lacks.append(f"Python 3.11 or newer (this is {platform.python_version()}): run `make PYTHON=python3.11 ...`")
    if importlib.util.find_spec("ensurepip") is None:
        lacks.append("the venv module of Python: `apt-get install python3-venv` (Debian, Ubuntu)")
    if platform.system() == "Linux" and ctypes.util.find_library("gomp") is None:
        lacks.append(LIBGOMP)
    if platform.system() == "Darwin" and shutil.which("envoy") is None:
        lacks.append(ENVOY)
    return lacks


def main() -> None:
    """Print the findings; exit 1 if something is missing."""
    lacks = missing()
    for lack in lacks:
        print(f"lacking: {lack}", file=sys.stderr)
    if lacks:
        sys.exit(1)
    if "--quiet" not in sys.argv:
        print("Nothing is missing for `make run` and `make test`.")
        for program, use in OPTIONAL.items():
            print(f"{program}: {shutil.which(program) or 'not found'} (only for {use})")


if __name__ == "__main__":
    main()
