"""Finds the `llama-server` program and builds its arguments and its environment.

Invariant: arguments are a list of typed values and never pass through a shell. llama.cpp gets only the environment variables that are named
here, because each of its options can also be set by a variable.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import thread_placement
from engine.failure import EngineError, FailureReason
from engine.spec import EngineSpec

if TYPE_CHECKING:
    from llamesh.runtime_parameters import Setting

MIN_BUILD = 11434
"""Minimum build of llama-server, the oldest whose flags and fixes (see docs on security) llamesh relies on."""

UNKNOWN_BUILD = 0
"""Build number of a llama-server that was built outside of its git repository. It is used only if LLAMA_SERVER_BIN names it."""

VERBOSITY = 2
"""llama.cpp's log level: warnings and errors. The next level writes several lines for each request."""

EMBEDDED = "embedded"
"""The value of LLAMA_SERVER_BIN that selects the embedded library even if a program is on PATH."""

SHORT_SPIN = "100"
"""Spins before a thread sleeps, about 5 us: libgomp's own number for machines with too many threads."""

_PASSED = re.compile(
    r"PATH|HOME|TMPDIR|TZ|LANG|LC_\w+|LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|VIRTUAL_ENV|PYTHONPATH|PYTHONHOME"
    r"|OMP_\w+|GOMP_\w+|CUDA_\w+|NVIDIA_\w+|HIP_\w+|ROCR_\w+|HSA_\w+|ONEAPI_\w+|SYSTEMROOT"
)


@dataclass(frozen=True, slots=True)
class Program:
    """A usable `llama-server`."""

    path: Path
    build: int


def find_program(environment: Mapping[str, str]) -> tuple[Program | None, str]:
    """Return the program to run (None: the embedded library) and the reason as a text.

    If LLAMA_SERVER_BIN is set, that program must be usable, or EngineError(NO_LLAMA_CPP) is raised. Otherwise a `llama-server` on PATH is
    used if it is usable.
    """
    named = environment.get("LLAMA_SERVER_BIN", "")
    if named == EMBEDDED:
        return None, "embedded library, selected by LLAMA_SERVER_BIN"
    found = named or shutil.which("llama-server", path=environment.get("PATH", ""))
    if not found:
        return None, "embedded library: no llama-server on PATH"
    try:
        program = inspect(Path(found), environment)
    except EngineError as failure:
        if named:
            raise
        return None, f"embedded library: {failure}"
    if program.build == UNKNOWN_BUILD and not named:
        return None, f"embedded library: {found} does not know its build; set LLAMA_SERVER_BIN to use it anyway"
    return program, f"{program.path} build {program.build or 'unknown'}"


def inspect(path: Path, environment: Mapping[str, str]) -> Program:
    """Run a llama-server to read its build number. Raises EngineError(NO_LLAMA_CPP) if it does not run or is too old."""
    try:
        answer = subprocess.run(
            [path, "--version"], env=scrubbed(environment), capture_output=True, text=True, timeout=15, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(FailureReason.NO_LLAMA_CPP, f"{path} cannot be run: {error}") from error
    text = answer.stdout + answer.stderr
    # "version: 11434 (abcdef)" in old builds, "version: 0.5.1 (build 11434, commit abcdef)" in new ones.
    version = re.search(r"version:.*\(build (\d+)|version:\s*(\d+)", text)
    if answer.returncode != 0 or version is None:
        first = (text.strip().splitlines() or ["it wrote nothing"])[0]
        raise EngineError(FailureReason.NO_LLAMA_CPP, f"{path} does not report its version: {first}")
    build = int(version[1] or version[2])
    if build != UNKNOWN_BUILD and build < MIN_BUILD:
        raise EngineError(FailureReason.NO_LLAMA_CPP, f"{path} is build {build}; at least {MIN_BUILD} is needed")
    return Program(path, build)


def arguments(program: Program, spec: EngineSpec, settings: Sequence[Setting]) -> list[str]:
    """Return the command line, without the API key, because other users can read command lines; see `scrubbed`."""
    command = [str(program.path), "--model", str(spec.model), "--alias", spec.alias, "--host", spec.listen.host]
    if spec.listen.socket is None:
        command += ["--port", str(spec.listen.port)]
    if spec.projector is not None:
        command += ["--mmproj", str(spec.projector)]
    command += ["--threads-http", str(spec.http_threads), "--metrics", "--slots", "--no-ui", "--offline"]
    command += ["--verbosity", str(VERBOSITY)]
    for setting in settings:
        command += setting.arguments()
    return command


def computing(environment: Mapping[str, str], program: Program | None) -> dict[str, str]:
    """Return libgomp's variables for how threads wait, unless the user has set them: see engine/thread_placement.py.

    The `llama-server` program cannot change these settings while it runs, so its threads sleep soon: prompts are fast on an idle and on a
    busy machine, and answers use fewer threads (engine/cores.py).
    """
    if any(name in environment for name in thread_placement.ENVIRONMENT):
        return {}
    return dict(thread_placement.ENVIRONMENT) if program is None else {"GOMP_SPINCOUNT": SHORT_SPIN}


def scrubbed(environment: Mapping[str, str], api_key: str = "") -> dict[str, str]:
    """Return llama.cpp's environment: without its own variables and llamesh's secrets, and with the API key that it must require."""
    kept = {name: value for name, value in environment.items() if _PASSED.fullmatch(name)}
    # llama-server looks here for the user's configuration file, whose options are unchecked.
    kept["XDG_CONFIG_HOME"] = os.devnull
    if api_key:
        kept["LLAMA_API_KEY"] = api_key
    return kept
