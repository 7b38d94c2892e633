"""Mutual TLS of one member: its certificate files, read again when they change, and the credentials made from them.

A server asks `MemberTls` at each TLS handshake (gRPC has a call for that), a channel before each call (`rotating_channel`), and the member
once a second for its health. So a renewal needs no restart, and connections that exist stay.

Invariant: without good files a member does not start. Later, files that cannot be used change nothing: the earlier ones stay, and the log
and the member's health say why.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import cast

import grpc

from llamesh.certificates import CertificateError
from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.errors import StartRefused
from llamesh.kit.logs import log
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY, MemberCertificate, folder_of, read

LOOK_SECONDS = 1.0
"""Seconds between two comparisons of the files with those in use."""

HEALTH_PART = "certificates"
"""Name of the certificate files in a member's gRPC health."""


class MemberTls:
    """The certificate files of one member. Its methods may be called in any thread: gRPC makes TLS handshakes in its own."""

    def __init__(self, folder: Path, domain: str, member: str, clock: Callable[[], datetime] = utc_now) -> None:
        """Read the files. CertificateError if they cannot be used."""
        self.domain = domain
        self.member = member
        self.folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = self._stamped()
        self._present = read(folder, domain, member, clock())
        self._looked = time.monotonic()
        self._problem = ""
        self._served: MemberCertificate | None = None
        """The files of the last TLS handshake of the server."""

    def look(self) -> MemberCertificate:
        """Return the files in use, after reading them again if they have changed. They are compared at most once in LOOK_SECONDS."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return self._present
        with self._lock:
            self._looked = time.monotonic()
            stamp = self._stamped()
            if stamp != self._stamp or self._problem:
                self._read(stamp)
            return self._present

    @property
    def problem(self) -> str:
        """Why the present files are not used, or what is wrong with those in use; empty if all is well."""
        self.look()
        if self._clock() > self._present.ends:
            return self._problem or f"the certificate expired on {self._present.ends:%Y-%m-%d %H:%M}Z"
        return self._problem

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of a server, which asks every caller for its certificate."""
        self._served = self._present
        first = _configuration(self._present)
        fetch = cast(
            "Callable[[], grpc.ServerCertificateConfiguration]", self._fetch
        )  # None is described, and not typed
        return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=True)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what the next TLS handshake uses; None if that has not changed."""
        found = self.look()
        if found is self._served:
            return None
        self._served = found
        return _configuration(found)

    def _read(self, stamp: object) -> None:
        try:
            self._present, problem = read(self.folder, self.domain, self.member, self._clock()), ""
        except CertificateError as error:
            problem = f"{error}: {error.remedy}"
        self._stamp = stamp
        if problem and problem != self._problem:
            log.error("the certificate that is in use stays", problem=problem, until=self._present.ends.isoformat())
        elif not problem:
            log.info("new certificate", until=self._present.ends.isoformat())
        self._problem = problem

    def _stamped(self) -> object:
        """Return what changes with the files; None in place of a file that cannot be seen."""
        return tuple(_stamp(self.folder / name) for name in (CERTIFICATE, KEY, AUTHORITIES))


def open_member_tls(settings: Settings, member: str) -> MemberTls | None:
    """Return the certificate files of a member; None if all members are on this machine's Unix sockets.

    Raises StartRefused if the settings name addresses and no certificates, or files that cannot be used.
    """
    if not settings.member_addresses:
        return None
    if settings.member_certificates is None:
        raise StartRefused(
            "LLAMESH_MEMBER_ADDRESSES is set and LLAMESH_MEMBER_CERTIFICATES is not: members use TCP with mutual TLS only;"
            " `llamesh certificates` makes the files"
        )
    try:
        return _opened(folder_of(settings.member_certificates, member), settings.trust_domain, member)
    except CertificateError as error:
        raise StartRefused(f"LLAMESH_MEMBER_CERTIFICATES: {error}: {error.remedy}") from error


@lru_cache(maxsize=32)
def _opened(folder: Path, domain: str, member: str) -> MemberTls:
    """Open the files once for the server and all channels of a process, so that a problem is logged once."""
    return MemberTls(folder, domain, member)


def _configuration(found: MemberCertificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(found.key, found.chain)], found.authorities)


def _stamp(file: Path) -> object:
    try:
        found = os.stat(file)  # noqa: PTH116 - half the time of Path.stat, before each call
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
