"""Validates the certificate of the front door at the start and after each renewal, then passes it to Envoy.

Invariant: a mesh does not start with an invalid pair. A running mesh keeps the last valid pair and reports this once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
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
LOOKS_BEHIND = 3
"""Number of consecutive checks with the old certificate after which a report says that Envoy has not taken the new one."""
SHOW_SECONDS = 3.0
"""How long a TLS handshake may take."""


def read(settings: MeshSettings) -> Certificate | None:
    """Read the pair of the settings; None without TLS. CertificateError if it cannot be used."""
    if not settings.tls:
        return None
    return certificates.read(settings.tls_certificate, settings.tls_key, datetime.now(UTC))


def take(settings: MeshSettings) -> Certificate | None:
    """Read the pair at the start. CommandError with the remedy if it cannot be used."""
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
        certificates.hand_to_envoy(found, make_private(settings.envoy_files))
    return certificates.secret_file(settings.envoy_files)


def shown(settings: MeshSettings) -> bytes | None:
    """Return the certificate that the front door shows a client now, as DER. None if there is no TLS handshake within SHOW_SECONDS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent and nothing is trusted: the certificate is compared with the file.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((settings.host, settings.inference_port), timeout=SHOW_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=settings.host) as secured,
        ):
            return secured.getpeercert(binary_form=True)
    except OSError:
        return None


class Renewal:
    """Passes each renewed pair to Envoy and reports the result, which is the certificate that a client is shown."""

    def __init__(self, settings: MeshSettings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._told = ""
        self._shown: bytes | None = None
        """The certificate that a client was shown last."""
        self._behind = 0

    async def look(self) -> None:
        """Compare the files with what Envoy has."""
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        try:
            found = read(self._settings)
        except CertificateError as error:
            self._keeps(str(error), error.remedy)
            return
        if not found:
            return
        try:
            # The folder may have been moved away. Envoy still watches that folder, so only the handshake shows what it uses.
            if certificates.hand_to_envoy(found, make_private(self._settings.envoy_files)):
                self._behind = 0
        except OSError as error:
            file = certificates.secret_file(self._settings.envoy_files)
            words = f"{file} cannot be written: {error.strerror or error}"
            self._keeps(words, f"see that {file.parent} is a folder of this user with free space; it is tried again")
            return
        if found.leaf != self._shown:
            self._confirm(found)
        else:
            self._told = ""

    def _confirm(self, found: Certificate) -> None:
        now, before = shown(self._settings), self._shown
        self._shown = now or before
        if now == found.leaf:
            self._behind, self._told = 0, ""
            if before:
                self._say(f"the front door has a new certificate, valid until {found.ends:%Y-%m-%d}")
        elif now:
            self._behind += 1
            if self._behind >= LOOKS_BEHIND:
                words = f"Envoy has not taken the new one, valid until {found.ends:%Y-%m-%d}"
                self._keeps(words, "see the log of envoy; `llamesh down` and `llamesh up` hand it over again")

    def _keeps(self, words: str, remedy: str) -> None:
        """Report once why the certificate stays."""
        if words != self._told:
            self._told = words
            self._say(f"the front door keeps the certificate that it has: {words}\n    -> {remedy}")
