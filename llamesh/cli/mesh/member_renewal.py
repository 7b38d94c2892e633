"""Renews the certificates of members, if the authority that `llamesh certificates` has made is on this machine.

Members and Envoy read them again by themselves. With cert-manager, or with an authority elsewhere, nothing here renews.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from llamesh.certificates import CertificateError
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.member_authority import AUTHORITY, MemberAuthority
from llamesh.member_certificates import PLACEHOLDER
from llamesh.names import MEMBERS

LOOK_SECONDS = 60.0
"""Seconds between two looks for certificates that are due."""


def own_folder(settings: MeshSettings) -> Path | None:
    """Return the folder with the authority and a folder for each member; None if the settings name none of this form."""
    named = settings.member_certificates
    return named.parent if named is not None and named.name == PLACEHOLDER else None


def renew(settings: MeshSettings) -> None:
    """Renew the certificates that are due. CertificateError if the authority cannot sign; OSError if a file cannot be written."""
    folder = own_folder(settings)
    if folder is None or not settings.member_addresses or not (folder / AUTHORITY).is_dir():
        return
    authority = MemberAuthority(folder, settings.trust_domain)
    for member in MEMBERS:
        # Members run elsewhere if their folders are not here.
        if (folder / member).is_dir():
            authority.issue(member, datetime.now(UTC))


class MemberRenewal:
    """Renews while the mesh runs, and reports a failure once."""

    def __init__(self, settings: MeshSettings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._told = ""

    async def look(self) -> None:
        """Renew what is due."""
        words = ""
        try:
            await asyncio.to_thread(renew, self._settings)
        except CertificateError as error:
            words = f"{error}\n    -> {error.remedy}"
        except OSError as error:
            words = f"{error.filename}: {error.strerror or error}"
        if words and words != self._told:
            self._say(f"the certificates of members are not renewed: {words}")
        self._told = words
