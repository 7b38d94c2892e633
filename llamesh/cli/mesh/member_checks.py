"""Check of the certificates by which members know each other over TCP, for `llamesh doctor`. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from llamesh.certificates import CertificateError
from llamesh.cli.mesh.findings import Finding
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.member_certificates import PLACEHOLDER, folder_of, read
from llamesh.names import ENVOY, MEMBERS

_LATE = 5 / 6
"""Part of a certificate's life after which its renewal, at two thirds, is late."""


def of_members(settings: MeshSettings) -> Iterator[Finding]:
    """Check the certificates whose folders are on this machine. Nothing if members use Unix sockets only."""
    folder = settings.member_certificates
    if not settings.member_addresses or folder is None:
        return
    now, ends, late = datetime.now(UTC), [], []
    # A folder of one member: of the one that runs here, else of Envoy.
    single = tuple(settings.only) if len(settings.only) == 1 else (ENVOY,)
    for member in MEMBERS if PLACEHOLDER in str(folder) else single:
        place = folder_of(folder, member)
        # Members may run elsewhere; Envoy runs here unless `llamesh up --only` says otherwise.
        if not place.is_dir() and (member != ENVOY or not settings.runs(ENVOY)):
            continue
        try:
            found = read(place, settings.trust_domain, member, now)
        except CertificateError as error:
            yield Finding("members", "problem", str(error), error.remedy)
            continue
        ends.append(found.ends)
        if now > found.begins + (found.ends - found.begins) * _LATE:
            late.append(f"{member} (until {found.ends:%Y-%m-%d %H:%M}Z)")
    if late:
        fix = "`llamesh certificates` renews those that it made; with cert-manager see the events of the Certificate"
        yield Finding("members", "warning", f"the renewal of certificates is late: {', '.join(late)}", fix)
    elif ends:
        yield Finding("members", "ok", f"{len(ends)} certificates, the first ends {min(ends):%Y-%m-%d %H:%M}Z")
