"""Checks and folders of a mesh before its processes start.

Invariant: what keeps a mesh from starting is said here with its remedy, before a process fails with a log line.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from llamesh.certificates import CertificateError
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh import certificate_checks, checks, envoy_tls, member_renewal, outside, placement, ports, renewal
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.disk_space import free_bytes
from llamesh.locations import make_private
from llamesh.names import CONTROLLER, ENVOY, QUANT


def make_usable(folder: Path) -> None:
    """Create a folder of the mesh; CommandError with the reason if that fails."""
    try:
        make_private(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "this user may not write there", str(folder))
    except OSError as error:
        raise CommandError(
            f"{folder} cannot be used: {error.strerror or error}",
            hint="set LLAMESH_HOME to a folder that this user may write to",
            # Only a disk may have space again by itself.
            code=Exit.FAILED if error.errno in (errno.ENOSPC, errno.EDQUOT) else Exit.USAGE,
        ) from error


def _check_members(settings: MeshSettings) -> None:
    """CommandError if Envoy could not prove to members that it is Envoy. Certificates that expired while the mesh was down are renewed."""
    try:
        member_renewal.renew(settings)
    except (CertificateError, OSError) as error:
        words = f"the certificates of members are not renewed: {error}"
        raise CommandError(words, hint=getattr(error, "remedy", ""), code=Exit.USAGE) from error
    if settings.runs(ENVOY):
        envoy_tls.check(settings)


def _check_front_door(settings: MeshSettings) -> Iterator[str]:
    """Yield warnings about the certificate of the front door; CommandError if it cannot be used, or a port is taken."""
    renewal.take(settings)
    for finding in certificate_checks.of_files(settings):
        if finding.state != "ok":
            yield f"{finding.check}: {finding.found}\n    -> {finding.fix}"
    problems = ports.taken(settings.listens_on, settings.ports)
    if problems:
        wrong = any(problem.by_setting for problem in problems)
        raise CommandError(
            "Envoy cannot listen",
            parts=[problem.words for problem in problems],
            hint=ports.remedy(problems),
            code=Exit.USAGE if wrong else Exit.FAILED,
        )


def check_machine(settings: MeshSettings) -> Iterator[str]:
    """Check for problems that would only appear later, in some log. Yields warnings; CommandError if what runs here cannot start."""
    _check_members(settings)
    if settings.runs(ENVOY):
        yield from _check_front_door(settings)
    yield from placement.warnings(settings)
    if settings.runs(CONTROLLER) and settings.runtime == "process" and (openmp := checks.openmp()).state != "ok":
        yield f"{openmp.found}, which llama.cpp needs: no model can be served until: {openmp.fix}"
    if settings.quant and settings.runs(QUANT) and (quantiser := outside.quantiser(os.environ)).state != "ok":
        yield f"no variant can be made: {quantiser.found}"
    free = free_bytes(settings.home)
    if free < checks.MIN_FREE_BYTES:
        raise CommandError(
            f"the disk of {settings.home} is full: {free // 2**20} MiB are free, {checks.MIN_FREE_BYTES // 2**20} are needed",
            hint="free some space, or set LLAMESH_HOME to a folder on another disk",
        )
