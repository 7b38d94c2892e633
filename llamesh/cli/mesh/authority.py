"""Creates the certificate authority of one mesh and signs server certificates, for networks without a public authority.

Invariant: keys are readable for this user only from the moment they exist. The authority is never replaced, because other machines trust
it.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from llamesh import certificates
from llamesh.certificates import Certificate, CertificateError
from llamesh.client.trust import own_authority
from llamesh.locations import make_private
from llamesh.private_files import write_private

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
"""Browsers refuse certificates that are valid for longer."""
RENEWED_DAYS = 30
"""A certificate that expires within this time is renewed."""
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


def names_of_this_machine() -> list[str]:
    """Names and addresses of this machine."""
    host = socket.gethostname().lower()
    found = ["localhost", "127.0.0.1", "::1", host]
    if host and "." not in host:
        found.append(f"{host}.local")
    with suppress(OSError):
        found += [str(item[4][0]).partition("%")[0] for item in socket.getaddrinfo(host, None)]
    found += outward_addresses()
    return list(dict.fromkeys(name for name in found if name))


def outward_addresses() -> list[str]:
    """The source addresses that this machine uses for other networks. Nothing is sent."""
    found = []
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found.append(str(probe.getsockname()[0]))
    return found


def issue(files: Files, names: list[str], now: datetime, *, renew: bool = False) -> tuple[Certificate, bool]:
    """Return the server's certificate for these names, and whether it is new. A certificate that is still good is kept.

    A new one is also valid for the names of the one that it replaces, which clients may use.
    OSError if a file cannot be written; CertificateError if the authority's files cannot be used.
    """
    wanted = tuple(map(_normal, names))
    kept = None
    with suppress(CertificateError):
        kept = certificates.read(str(files.certificate), str(files.key), now)
    if kept and not renew and set(wanted) <= set(kept.names) and kept.days_left(now) > RENEWED_DAYS:
        return kept, False
    make_private(files.authority.parent)
    signer, signing = _authority(files, now)
    names_before = certificates.names(files.certificate)
    certificate, key = _signed(tuple(dict.fromkeys((*wanted, *names_before))), signer, signing, now)
    # A reader between these two writes sees a pair that does not match, rejects it, and reads again later.
    write_private(files.key, key)
    write_private(files.certificate, certificate)
    return certificates.read(str(files.certificate), str(files.key), now), True


def fingerprint(file: Path) -> str:
    """SHA-256 of a certificate, as browsers show it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    return x509.load_pem_x509_certificate(file.read_bytes()).fingerprint(hashes.SHA256()).hex(":").upper()


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
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(files.authority_key, _pem(key))
    write_private(files.authority, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _read_authority(files: Files, now: datetime) -> Certificate:
    """Read the authority. CertificateError, without the settings of the front door, which do not name the authority."""
    try:
        return certificates.read(str(files.authority), str(files.authority_key), now)
    except CertificateError as error:
        words = str(error).removeprefix("LLAMESH_TLS_CERTIFICATE: ").removeprefix("LLAMESH_TLS_KEY: ")
        folder = files.authority.parent
        remedy = f"put ca.pem and ca.key back into {folder}; if they are lost or expired, remove both: clients must trust a new one"
        raise CertificateError(f"the authority of this mesh cannot sign: {words}", remedy) from error


def _signed(names: tuple[str, ...], signer: Any, signing: Any, now: datetime) -> tuple[bytes, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "llamesh")])
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    certificate = (
        _builder(subject, signer.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_id, critical=False)
        .sign(signing, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def _builder(subject: Any, issuer: Any, public_key: Any, now: datetime, days: int) -> Any:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _general_name(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    return x509.DNSName(name)


def _normal(name: str) -> str:
    """A name as certificates have it: an address in its shortest form, a host name in lower case and in ASCII (IDNA)."""
    name = name.strip().strip("[]").rstrip(".").lower()
    if _is_address(name):
        return str(ip_address(name))
    try:
        host = name if name.isascii() else name.encode("idna").decode()
    except ValueError:
        host = ""
    if not host or any(mark in host for mark in "/ @:"):
        raise CertificateError(f"{name!r} is no host name or address", "write it without scheme and port")
    return host


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
