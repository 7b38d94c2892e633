"""Selects the certificate authorities that verify a mesh's certificate, for HTTP and gRPC.

LLAMESH_CA names a file; else the one beside the profile (`llamesh tls trust`), else that of the mesh of this machine. Its authorities are
trusted beside those of the system (SSL_CERT_FILE, or Python's).
Invariant: a file that LLAMESH_CA names but that cannot be read is an error, and every certificate is verified.
"""

from __future__ import annotations

import hashlib
import os
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamesh.client.contexts import config_folder
from llamesh.client.profile import on_this_machine
from llamesh.locations import expanded, home_directory

if TYPE_CHECKING:
    import ssl

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS
)
"""Where systems keep their authorities; Python may be built for another place."""


class UntrustedError(ValueError):
    """A file of authorities that cannot be used; `remedy` says what to do."""

    def __init__(self, words: str, remedy: str = "correct LLAMESH_CA, or unset it") -> None:
        super().__init__(words)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate of an authority."""

    name: str
    fingerprint: str
    """SHA-256 in the format of browsers and of `llamesh tls init`."""
    pem: str


def own_authority(home: Path) -> Path:
    """The certificate of the authority that `llamesh tls init` makes."""
    return home / "tls" / "ca.pem"


def kept_authority(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the file in which `llamesh tls trust` stores certificates."""
    return config_folder(environment) / "ca.pem"


def authorities(content: bytes) -> list[Authority]:
    """The certificates of authorities in a PEM file. ValueError if the file contains anything else, such as the certificate of a server."""
    import ssl

    # Comments between the certificates may have any encoding.
    text = content.removeprefix(BOM_UTF8).decode("ascii", "replace").replace("\ufffd", "?")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("it holds no PEM certificate that can be read") from error
    found = [
        Authority(_name(shown), hashlib.sha256(der).digest().hex(":").upper(), ssl.DER_cert_to_PEM_cert(der))
        for shown, der in zip(context.get_ca_certs(), context.get_ca_certs(binary_form=True), strict=True)
    ]
    # OpenSSL keeps a certificate that the file holds twice once.
    blocks = {"".join(block.partition("-----END ")[0].split()) for block in text.split("-----BEGIN ")[1:]}
    if len(found) != len(blocks):
        raise ValueError("it holds more than certificates of authorities: that of a server, or a key")
    return found


def _name(certificate: Mapping[str, object]) -> str:
    subject: tuple[tuple[tuple[str, str], ...], ...] = certificate["subject"]  # type: ignore[assignment]
    return ", ".join(value for part in subject for kind, value in part if kind in {"commonName", "organizationName"})


def authority(url: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The file of additional authorities for the mesh at an address. None if there is none. UntrustedError if LLAMESH_CA names no path."""
    if named := environment.get("LLAMESH_CA"):
        try:
            return expanded(named, "LLAMESH_CA")
        except ValueError as error:
            raise UntrustedError(str(error)) from error
    kept = kept_authority(environment)
    if kept.is_file():
        return kept
    here = own_authority(home_directory(environment))
    return here if on_this_machine(url) and os.access(here, os.R_OK) else None


def ssl_context(url: str, environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """The context for HTTPS. UntrustedError if the file of authorities cannot be used."""
    import ssl

    context = ssl.create_default_context()
    file = authority(url, environment)
    if file is not None:
        try:
            context.load_verify_locations(cafile=str(file))
        except (OSError, ssl.SSLError) as error:
            raise _unusable(file, error, environment) from error
    return context


def system_authorities() -> Path | None:
    """The file of the authorities that this system trusts: OpenSSL's own, that of a distribution, or certifi's. None if there is none."""
    import ssl
    from importlib.util import find_spec

    found = ssl.get_default_verify_paths().cafile
    places = (Path(place) for place in (found, *_BUNDLES) if place)
    if (place := next((place for place in places if place.is_file()), None)) or find_spec("certifi") is None:
        return place
    import certifi

    return Path(certifi.where())


def root_certificates(url: str, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """Return the authorities for gRPC as PEM; None for gRPC's defaults. UntrustedError if the file cannot be used."""
    file = authority(url, environment)
    system = environment.get("SSL_CERT_FILE") or (system_authorities() if file else None)
    try:
        own = file.read_bytes() if file else b""
        if file and b"-----BEGIN CERTIFICATE-----" not in own:
            raise _unusable(file, ValueError("it holds no PEM certificate of an authority"), environment)
        others = Path(system).read_bytes() if system else b""
    except OSError as error:
        raise _unusable(Path(error.filename), error, environment) from error
    return own + b"\n" + others if own or others else None


def _unusable(file: Path, error: Exception, environment: Mapping[str, str]) -> UntrustedError:
    words = f"the certificates in {file} cannot be used: {getattr(error, 'strerror', None) or error}"
    if environment.get("LLAMESH_CA") or file != kept_authority(environment):
        return UntrustedError(words)
    return UntrustedError(words, "remove the file, and trust the authority again: llamesh tls trust ca.pem")
