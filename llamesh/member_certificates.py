"""The identity of a member where members call each other over TCP, and the certificate that proves it.

A member has a folder with `tls.crt` (its certificate, then those between it and the authority), `tls.key` and `ca.crt` (the authorities
that it trusts: two while one replaces the other). Secrets of Kubernetes and of cert-manager have this layout. The certificate has exactly
one URI, `spiffe://DOMAIN/MEMBER`, which servers check, and the DNS name `MEMBER.DOMAIN`, which gRPC's clients check: they check no URI.

Invariant: only files that belong together and are valid now are used. While a renewal writes them, the earlier ones stay.
The library that reads certificates belongs to the extra `mesh` and is imported when a file is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from llamesh.certificates import MAX_BYTES, CertificateError
from llamesh.regular_files import NotRegularError, open_regular

CERTIFICATE = "tls.crt"
KEY = "tls.key"
AUTHORITIES = "ca.crt"
CURRENT = "..data"
"""The link in a folder that leads to its present files. A renewal replaces the link, and so all files at once."""

PLACEHOLDER = "{member}"
"""What stands for the member's name in the setting that names the folder."""
_REMEDY = "`llamesh certificates` makes the files, and so does cert-manager: docs/guide/members.md"


@dataclass(frozen=True, slots=True)
class MemberCertificate:
    """The files of one member, as PEM, read and checked together."""

    chain: bytes
    key: bytes
    authorities: bytes
    begins: datetime
    ends: datetime
    """End of the certificate, or of the authority that signed it if that is earlier."""


def identity(domain: str, member: str) -> str:
    """Return the identity of a member: the URI in its certificate."""
    return f"spiffe://{domain}/{member}"


def host_name(domain: str, member: str) -> str:
    """Return the DNS name in the certificate of a member. It is no address: siblings are found by the settings."""
    return f"{member}.{domain}"


def folder_of(setting: Path, member: str) -> Path:
    """Return the folder of a member that the setting LLAMESH_MEMBER_CERTIFICATES names."""
    return Path(str(setting).replace(PLACEHOLDER, member))


def present(folder: Path) -> Path:
    """Return the folder that has the present files. Read from there, files that are replaced together are read together."""
    link = folder / CURRENT
    return link.resolve() if link.exists() else folder


def read(folder: Path, domain: str, member: str, now: datetime) -> MemberCertificate:
    """Read the files of a member. CertificateError, in words, if they cannot be read, do not belong together, or are not valid now."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    place = present(folder)
    chain, key, authorities = (_content(folder, place / name) for name in (CERTIFICATE, KEY, AUTHORITIES))
    try:
        leaf, *between = x509.load_pem_x509_certificates(chain)
        trusted = x509.load_pem_x509_certificates(authorities)
        private: Any = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        names = f"{CERTIFICATE}, {KEY} and {AUTHORITIES}"
        raise CertificateError(
            f"{folder}: {names} are no certificates and key in PEM: {error}".splitlines()[0], _REMEDY
        ) from error
    if private.public_key() != leaf.public_key():
        raise CertificateError(f"{folder}: {KEY} does not belong to {CERTIFICATE}", _REMEDY)
    signer = _signer(leaf, between, trusted)
    if signer is None:
        raise CertificateError(f"{folder}: no authority in {AUTHORITIES} has signed {CERTIFICATE}", _REMEDY)
    _check_names(folder, leaf, domain, member)
    begins = max(leaf.not_valid_before_utc, signer.not_valid_before_utc)
    ends = min(leaf.not_valid_after_utc, signer.not_valid_after_utc)
    if not begins <= now <= ends:
        words = f"expired on {ends:%Y-%m-%d %H:%M}Z" if now > ends else f"is not valid before {begins:%Y-%m-%d %H:%M}Z"
        raise CertificateError(f"{folder}: {CERTIFICATE} {words}", "renew it, and compare the clocks of the machines")
    return MemberCertificate(chain, key, authorities, begins, ends)


def end_of(certificate: bytes) -> datetime:
    """Return when a certificate ends that a peer has shown, as PEM. ValueError if it is none."""
    from cryptography import x509

    found: datetime = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    return found


def _content(folder: Path, file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, NotRegularError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise CertificateError(f"{folder / file.name} cannot be read: {words}", _REMEDY) from error
    if not content.strip() or len(content) > MAX_BYTES:
        raise CertificateError(f"{folder / file.name} is empty or has more than {MAX_BYTES} bytes", _REMEDY)
    return content


def _signer(leaf: Any, between: list[Any], trusted: list[Any]) -> Any:
    """Return the authority at which the chain of a certificate ends; None if it ends at none that is trusted."""
    from cryptography.exceptions import InvalidSignature

    issued = leaf
    # Each certificate in between is used once at most.
    for step in range(len(between) + 1):
        for issuer in (*trusted, *between[step:]):
            try:
                issued.verify_directly_issued_by(issuer)
            except (ValueError, TypeError, InvalidSignature):
                continue
            if issuer in trusted:
                return issuer
            issued = issuer
            break
        else:
            return None
    return None


def _check_names(folder: Path, leaf: Any, domain: str, member: str) -> None:
    from cryptography import x509

    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        uris, hosts = [], []
    if uris != [identity(domain, member)]:
        shown = ", ".join(uris) or "none"
        raise CertificateError(
            f"{folder}: {CERTIFICATE} must have the URI {identity(domain, member)} and no other; it has {shown}",
            "LLAMESH_TRUST_DOMAIN names the mesh; each member has a certificate of its own",
        )
    if host_name(domain, member) not in hosts:
        raise CertificateError(f"{folder}: {CERTIFICATE} lacks the DNS name {host_name(domain, member)}", _REMEDY)
