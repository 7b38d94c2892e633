"""Checks of the certificate of the front door, for `llamesh doctor` and for the warnings of `llamesh up`.

Invariant: a check changes nothing. What is found is what a client would find: a pair that cannot be used, an end that
is near, and each name under which llamesh itself gives out addresses and for which the certificate is not valid.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

from llamesh import certificates
from llamesh.certificates import Certificate
from llamesh.cli.mesh import authority, host_names, renewal
from llamesh.cli.mesh.findings import Finding
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.cli.mesh.welcome import hosts_for_others

MIN_CERTIFICATE_DAYS = 14
"""Minimum number of days before the end of the certificate; fewer are a warning."""
MIN_AUTHORITY_DAYS = 90
"""Minimum number of days before the end of the authority; fewer are a warning, because each client must trust a new one."""


def of_files(settings: MeshSettings, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Check the certificate and the key that the settings name. Nothing without TLS."""
    if not settings.tls:
        return
    time_now = datetime.fromtimestamp(now(), UTC)
    try:
        found = certificates.read(settings.tls_certificate, settings.tls_key, time_now)
    except certificates.CertificateError as error:
        yield Finding("certificate", "problem", str(error), error.remedy)
        return
    left = found.days_left(time_now)
    words = f"valid for {left:.0f} days, until {found.ends:%Y-%m-%d}"
    if left < MIN_CERTIFICATE_DAYS:
        yield Finding("certificate", "warning", words, "renew it; `llamesh tls init` renews those that it made")
    yield from _missing_names(settings, found)
    if left >= MIN_CERTIFICATE_DAYS:
        yield Finding("certificate", "ok", f"{words}, for {', '.join(found.names) or 'no name'}")


def of_authority(settings: MeshSettings, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Check the end of the authority that `llamesh tls init` made, if the mesh uses its certificate."""
    files = authority.Files(settings.home)
    if authority.is_same(settings.tls_certificate, files.certificate) and files.authority.exists():
        yield end_of_authority(files, datetime.fromtimestamp(now(), UTC))


def end_of_authority(files: authority.Files, now: datetime) -> Finding:
    """Check the end of an authority, which is that of its certificates at the latest."""
    try:
        end = authority.not_after(files.authority)
    except certificates.CertificateError as error:
        return Finding("authority", "warning", str(error), error.remedy)
    left = (end - now).total_seconds() / 86400
    if left >= MIN_AUTHORITY_DAYS:
        return Finding("authority", "ok", f"valid for {left:.0f} days, until {end:%Y-%m-%d}")
    remove = shlex.join(["rm", str(files.authority), str(files.authority_key)])
    fix = f"{remove}; llamesh tls init --renew; then `llamesh tls trust` on each client: until then it refuses the mesh"
    words = f"{files.authority} {f'ends in {left:.0f} days' if left > 0 else 'ended'}, on {end:%Y-%m-%d}: no client trusts it then"
    return Finding("authority", "warning" if left > 0 else "problem", words, fix)


def _missing_names(settings: MeshSettings, found: Certificate) -> Iterator[Finding]:
    if not found.names:
        words = "it has no names (subject alternative names): clients refuse it under every address"
        yield Finding("certificate", "problem", words, "make one with names; `llamesh tls init` does")
        return
    here = urlsplit(settings.addresses.management).hostname or ""
    others = [] if settings.public_host == "localhost" else [settings.public_host]
    others += hosts_for_others(settings, host_names.outward_addresses())
    missing = [host for host in dict.fromkeys(others) if host != here and not found.covers(host)]
    own = authority.is_same(settings.tls_certificate, authority.Files(settings.home).certificate)
    if not found.covers(here):
        fix = f"commands on this machine need LLAMESH_URL with one of its names: {', '.join(found.names)}"
        yield Finding(
            "certificate", "warning", f"it is not valid for {here}", f"llamesh tls init --name {here}" if own else fix
        )
    if missing:
        again = " ".join(["llamesh tls init", *(f"--name {host}" for host in missing)])
        fix = again if own else f"set LLAMESH_PUBLIC_HOST to one of its names: {', '.join(found.names)}"
        words = f"other machines are given addresses with {' and '.join(missing)}, for which it is not valid"
        yield Finding("certificate", "warning", words, fix)


def of_front_door(settings: MeshSettings) -> Iterator[Finding]:
    """Check that the running mesh shows the certificate of the file. Nothing if another check reports why it does not."""
    try:
        found = renewal.read(settings)
    except certificates.CertificateError:
        return
    shown = renewal.shown(settings) if found else None
    if found and shown and shown != found.leaf:
        words = f"the front door shows another certificate than {settings.tls_certificate} holds"
        fix = "a renewed one is taken within 15 s; if not, `llamesh down`, `llamesh up`"
        yield Finding("certificate", "problem", words, fix)
