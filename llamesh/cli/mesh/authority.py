"""Creates the certificate authority of one mesh and signs server certificates, for networks without a public authority.

Invariant: keys are readable for this user only from the moment they exist. The authority is never replaced, because other machines trust
it. One process at a time makes certificates for a home.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from llamesh import certificates, locks
from llamesh.certificates import Certificate, CertificateError
from llamesh.cli.mesh.host_names import is_usable, normal
from llamesh.client.trust import own_authority
from llamesh.locations import expanded, make_private
from llamesh.private_files import write_private

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
"""Browsers refuse certificates that are valid for longer."""
RENEWED_DAYS = 30
"""A certificate that expires within this time is renewed, unless it ends with its authority."""
_REMEDY = (
    "put ca.pem and ca.key back into {folder}; if they are lost or expired, remove both: clients must trust a new one"
)
_REMEDY_OF_ONE = "put {gone} back into {folder}; if it is lost, remove {other}: clients must trust a new one"
_SKEW = timedelta(hours=1)
"""Clocks of other machines may be slow."""


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of the files below LLAMESH_HOME/tls."""

    home: Path

    @property
    def authority(self) -> Path:
        """The authority's certificate, which clients trust."""
        return own_authority(self.home)

    @property
    def authority_key(self) -> Path:
        """The authority's key. Whoever has it can impersonate any server to clients that trust the authority."""
        return self.home / "tls" / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.home / "tls" / "server.pem"

    @property
    def key(self) -> Path:
        """The server's key."""
        return self.home / "tls" / "server.key"


def issue(
    files: Files, names: Iterable[str], now: datetime, *, renew: bool = False, without: Iterable[str] = ()
) -> tuple[Certificate, bool]:
    """Return the server's certificate for these names, and whether it is new. A certificate that is still good is kept.

    A new one ends with the authority at the latest, because no client trusts it longer. It is also valid for the names of the one that it
    replaces, which clients may use, except those in `without`.
    OSError if a file cannot be written; CertificateError if a name is none or the authority's files cannot be used.
    """
    dropped = {as_dropped(name) for name in without}
    wanted = [name for name in dict.fromkeys(map(normal, names)) if name not in dropped]
    if not wanted:
        raise CertificateError("no name is left for the certificate", "keep at least one name")
    with _alone(files):
        before = certificates.names(files.certificate)
        stay = [name for name in before if is_usable(name) and name not in dropped]
        if not renew and len(stay) == len(before) and set(wanted) <= set(before):
            kept = None
            with suppress(CertificateError):
                kept = certificates.read(str(files.certificate), str(files.key), now)
            if kept and _is_good(kept, files, now):
                return kept, False
        signer, signing = _authority(files, now)
        certificate, key = _signed(tuple(dict.fromkeys((*wanted, *stay))), signer, signing, now)
        # A reader between these two writes sees a pair that does not match, rejects it, and reads again later.
        write_private(files.key, key)
        write_private(files.certificate, certificate)
        return certificates.read(str(files.certificate), str(files.key), now), True


def _is_good(kept: Certificate, files: Files, now: datetime) -> bool:
    """Whether a new certificate would be no better. CertificateError if the authority's file has none."""
    if not files.authority.exists():
        return False  # No client can trust it. A new one is made, or refused if the key of the authority is there.
    last = not_after(files.authority)
    if kept.ends >= last:
        return kept.ends == last
    return kept.days_left(now) > RENEWED_DAYS


def fingerprint(file: Path) -> str:
    """SHA-256 of a certificate, as browsers show it. CertificateError if the file has none."""
    from cryptography.hazmat.primitives import hashes

    return str(_certificate(file).fingerprint(hashes.SHA256()).hex(":").upper())


def not_after(file: Path) -> datetime:
    """When the certificate of an authority ends. CertificateError if the file has none."""
    found: datetime = _certificate(file).not_valid_after_utc
    return found


def _certificate(file: Path) -> Any:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except PermissionError as error:
        remedy = f"let user {os.getuid()} read it, and enter its folders"
        raise CertificateError(f"{file}: {error.strerror}", remedy) from error
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or "it holds no PEM certificate"
        raise CertificateError(f"{file}: {words}", _REMEDY.format(folder=file.parent)) from error


def is_same(file: str, made: Path) -> bool:
    """Whether a setting names a file, by whatever path."""
    try:
        named = expanded(file)
        return bool(file) and (named == made or named.samefile(made))
    except (OSError, ValueError):
        return False


def as_dropped(name: str) -> str:
    """A name as the certificate has it, which may be one that no new certificate may hold."""
    return normal(name) if is_usable(name) else name.strip().lower()


@contextmanager
def _alone(files: Files) -> Iterator[None]:
    """Wait until no other process makes certificates in the folder: two authorities at once would leave the key of one with the other."""
    folder = os.open(make_private(files.authority.parent), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        locks.wait(folder)
        yield
    finally:
        os.close(folder)


def _authority(files: Files, now: datetime) -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if files.authority.exists() or files.authority_key.exists():
        found = _read_authority(files, now)
        return (
            x509.load_pem_x509_certificate(found.chain.encode()),
            serialization.load_pem_private_key(found.key.encode(), None),
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"llamesh of {socket.gethostname()}"[:64])])
    usage = {
        word: word in ("key_cert_sign", "crl_sign")
        for word in (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        )
    }
    certificate = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(files.authority_key, certificates.pem_of_key(key))
    write_private(files.authority, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _read_authority(files: Files, now: datetime) -> Certificate:
    """Read the authority. CertificateError, without the settings of the front door, which do not name the authority."""
    remedy = _remedy(files)
    if not files.certificate.exists():
        remedy = f"nothing is signed with it yet: rm -rf {shlex.join(map(str, (files.authority, files.authority_key)))}, and again"
    try:
        found = certificates.read(str(files.authority), str(files.authority_key), now)
    except CertificateError as error:
        words = str(error).removeprefix("LLAMESH_TLS_CERTIFICATE: ").removeprefix("LLAMESH_TLS_KEY: ")
        closed = isinstance(error.__cause__, PermissionError)
        raise CertificateError(
            f"the authority of this mesh cannot sign: {words}", error.remedy if closed else remedy
        ) from error
    if not found.signs:
        raise CertificateError(
            f"the authority of this mesh cannot sign: {files.authority} is the certificate of a server", remedy
        )
    return found


def _remedy(files: Files) -> str:
    folder = files.authority.parent
    for gone, other in ((files.authority, files.authority_key), (files.authority_key, files.authority)):
        if not gone.exists():
            return _REMEDY_OF_ONE.format(gone=gone.name, folder=folder, other=other.name)
    return _REMEDY.format(folder=folder)


def _signed(names: tuple[str, ...], signer: Any, signing: Any, now: datetime) -> tuple[bytes, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "llamesh")])
    last = min(now + timedelta(days=SERVER_DAYS), signer.not_valid_after_utc)
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    certificate = (
        _builder(subject, signer.subject, key.public_key(), now, last)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_id, critical=False)
        .sign(signing, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), certificates.pem_of_key(key)


def _builder(subject: Any, issuer: Any, public_key: Any, now: datetime, last: datetime) -> Any:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(last)
    )


def _general_name(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    return x509.DNSName(name)
