"""Validates the certificate of the front door at the start and after each renewal, then passes it to Envoy.

Invariant: a mesh does not start with an invalid pair. A running mesh keeps the last valid pair and reports this once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from llamesh import certificates
from llamesh.certificates import Certificate, CertificateError
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.locations import make_private

LOOK_SECONDS = 5.0
"""Seconds between two comparisons of the files with Envoy's pair."""


def read(settings: MeshSettings) -> Certificate | None:
    """The pair of the settings; None without TLS. CertificateError if it cannot be used."""
    if not settings.tls:
        return None
    return certificates.read(settings.tls_certificate, settings.tls_key, datetime.now(UTC))


def take(settings: MeshSettings) -> Certificate | None:
    """The pair at the start. CommandError with the remedy if it cannot be used."""
    try:
        return read(settings)
    except CertificateError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error


def hand_over(settings: MeshSettings) -> Path | None:
    """Pass the pair to Envoy if it is valid; else Envoy keeps its pair. OSError if the folder is not writable."""
    try:
        found = read(settings)
    except CertificateError:
        return None
    if found:
        make_private(settings.run_dir)
        certificates.hand_to_envoy(found, settings.run_dir)
    return certificates.secret_file(settings.run_dir)


class Renewal:
    """Passes each renewed pair to Envoy and reports the result."""

    def __init__(self, settings: MeshSettings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._told = ""

    async def look(self) -> None:
        """Compare the files with what Envoy has. OSError if Envoy's file cannot be written."""
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        try:
            found = read(self._settings)
        except CertificateError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._say(f"the front door keeps the certificate that it has: {error}\n    -> {error.remedy}")
            return
        self._told = ""
        if found and certificates.hand_to_envoy(found, self._settings.run_dir):
            self._say(f"the front door has a new certificate, valid until {found.ends:%Y-%m-%d}")
