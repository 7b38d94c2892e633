"""Reads the certificate and the key of the front door, validates them, and writes them for Envoy.

Invariant: Envoy gets only a certificate and a key that match. While a renewal has replaced only one of the two files, Envoy's pair stays.
The library that reads certificates belongs to the extra `mesh` and is imported when a file is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from llamesh.locations import expanded
from llamesh.private_files import write_private
from llamesh.regular_files import NotRegularError, open_regular

SECRET = "front_door"  # noqa: S105 the name, not the content
"""Name under which Envoy knows the certificate."""

MAX_BYTES = 1 << 20
"""Bytes of a file with a certificate or a key."""

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(?:(?!-----).)*-----END \1-----", re.DOTALL)
"""One whole block of PEM."""

_REMEDY = "`llamesh tls init` makes a pair for this machine"


class CertificateError(Exception):
    """A certificate that cannot be used; `remedy` is the instruction for a person."""

    def __init__(self, words: str, remedy: str = _REMEDY) -> None:
        super().__init__(words)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its matching key."""

    names: tuple[str, ...]
    """DNS names and addresses that it is valid for."""
    begins: datetime
    ends: datetime
    chain: str
    """The certificate and its chain, as PEM."""
    key: str
    """The private key, as PEM."""
    leaf: bytes
    """The server's own certificate, as DER, as clients see it."""
    signs: bool = False
    """Whether it is the certificate of an authority, which signs others. One that signs itself may be that of a server too."""

    def days_left(self, now: datetime) -> float:
        """Days until it expires; negative afterwards."""
        return (self.ends - now).total_seconds() / 86400

    def covers(self, host: str) -> bool:
        """Whether it is valid for a host name or address."""
        try:
            wanted = str(ip_address(host.strip("[]")))
        except ValueError:
            wanted = host.lower().rstrip(".")
        wildcard = f"*.{wanted.partition('.')[2]}"
        return wanted in self.names or wildcard in self.names


def names(certificate: Path) -> tuple[str, ...]:
    """Return the DNS names and addresses of the certificate in a file, also if it has expired. Empty if the file has no certificate."""
    from cryptography import x509

    try:
        return _names(x509.load_pem_x509_certificates(certificate.read_bytes())[0])
    except (OSError, ValueError):
        return ()


def secret_file(run_dir: Path) -> Path:
    """Return the path of the file from which Envoy reads the pair."""
    return run_dir / "certificate.json"


def read(certificate: str, key: str, now: datetime) -> Certificate:
    """Read the pair of the settings. CertificateError if a file cannot be read, they do not fit, or the time is outside its validity."""
    if not certificate or not key:
        given, lacking = ("CERTIFICATE", "KEY") if certificate else ("KEY", "CERTIFICATE")
        raise CertificateError(
            f"LLAMESH_TLS_{given} is set and LLAMESH_TLS_{lacking} is not", "set both, or none: TLS needs the two files"
        )
    chain = _content(certificate, "LLAMESH_TLS_CERTIFICATE")
    secret = _content(key, "LLAMESH_TLS_KEY")
    found = _parse(chain, secret, certificate, key)
    if now > found.ends:
        raise CertificateError(
            f"the certificate {certificate} expired on {found.ends:%Y-%m-%d %H:%M}Z",
            "renew it; `llamesh tls init` renews those that it made",
        )
    if now < found.begins:
        raise CertificateError(
            f"the certificate {certificate} is not valid before {found.begins:%Y-%m-%d %H:%M}Z",
            "compare the clocks of this machine and of the one that made it",
        )
    return found


def hand_to_envoy(found: Certificate, run_dir: Path) -> bool:
    """Write the file that Envoy reads, atomically and readable for this user only. Returns whether it has changed. OSError if it cannot."""
    secret = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": SECRET,
        "tls_certificate": {
            "certificate_chain": {"inline_string": found.chain},
            "private_key": {"inline_string": found.key},
        },
    }
    content = json.dumps({"resources": [secret]}).encode()
    path = secret_file(run_dir)
    try:
        if path.read_bytes() == content:
            return False
    except OSError:
        pass
    write_private(path, content)
    return True


def pem_of_key(key: Any) -> bytes:
    """Return a private key as PEM, not encrypted."""
    from cryptography.hazmat.primitives import serialization

    return bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _content(file: str, setting: str) -> str:
    try:
        with open_regular(expanded(file, setting)) as opened:
            content = opened.read(MAX_BYTES + 1)
    except NotRegularError as error:
        raise CertificateError(f"{setting}: {error}", f"correct {setting}") from error
    except PermissionError as error:
        raise CertificateError(
            f"{setting}: {file} cannot be read by this user", f"let user {os.getuid()} read it, and enter its folders"
        ) from error
    except OSError as error:
        raise CertificateError(f"{setting}: {file} cannot be read: {error.strerror}", f"correct {setting}") from error
    except ValueError as error:
        raise CertificateError(str(error), f"correct {setting}") from error
    if not content.strip():
        raise CertificateError(f"{setting}: {file} is empty", f"write the file again, or correct {setting}")
    if len(content) > MAX_BYTES:
        raise CertificateError(f"{setting}: {file} has more than {MAX_BYTES} bytes", f"correct {setting}")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError as error:
        form = "x509" if setting.endswith("CERTIFICATE") else "pkey"
        raise CertificateError(
            f"{setting}: {file} is not PEM", f"convert it: openssl {form} -inform der -in {file}"
        ) from error


def _parse(chain: str, secret: str, certificate: str, key: str) -> Certificate:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    _check_whole(chain, certificate)
    try:
        leaf = x509.load_pem_x509_certificates(chain.encode())[0]
        public, names = leaf.public_key(), _names(leaf)
    except UnsupportedAlgorithm as error:
        raise _kind_refused(certificate) from error
    except ValueError as error:
        raise CertificateError(
            f"LLAMESH_TLS_CERTIFICATE: {certificate} holds no PEM certificate",
            "it begins with -----BEGIN CERTIFICATE-----, the server's own first",
        ) from error
    try:
        private: Any = load_pem_private_key(secret.encode(), None)
    except TypeError as error:
        raise CertificateError(
            f"LLAMESH_TLS_KEY: {key} is encrypted", f"decrypt it: openssl pkey -in {key} -out server.key"
        ) from error
    except UnsupportedAlgorithm as error:
        raise _kind_refused(key) from error
    except ValueError as error:
        raise CertificateError(
            f"LLAMESH_TLS_KEY: {key} holds no PEM key", "it begins with -----BEGIN PRIVATE KEY-----"
        ) from error
    if private.public_key() != public:
        raise CertificateError(
            f"the key {key} does not belong to the certificate {certificate}",
            "name the two files of one pair; in a chain the server's own certificate comes first",
        )
    if not _usable(private):
        raise _kind_refused(key)
    der = leaf.public_bytes(Encoding.DER)
    return Certificate(names, leaf.not_valid_before_utc, leaf.not_valid_after_utc, chain, secret, der, _signs(leaf))


def _kind_refused(file: str) -> CertificateError:
    return CertificateError(
        f"Envoy takes no key of the kind of {file}",
        "make one of ECDSA (P-256, P-384 or P-521), Ed25519, or RSA with at least 2048 bits",
    )


def _check_whole(chain: str, certificate: str) -> None:
    """Raise CertificateError if the file ends, or continues, within a certificate: then Envoy refuses the whole file."""
    if any(line.startswith("-") for line in _BLOCK.sub("", chain).splitlines()):
        raise CertificateError(
            f"LLAMESH_TLS_CERTIFICATE: {certificate} holds a certificate that is cut off",
            "write the whole chain again; a program that is writing it now will have finished soon",
        )


def _usable(private: Any) -> bool:
    """Return whether Envoy accepts a key of this kind."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, rsa.RSAPrivateKey):
        return private.key_size >= 2048
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return isinstance(private.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1)
    return isinstance(private, ed25519.Ed25519PrivateKey)


def _signs(leaf: Any) -> bool:
    from cryptography import x509

    try:
        return bool(leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False


def _names(leaf: Any) -> tuple[str, ...]:
    from cryptography import x509

    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    hosts: Sequence[str] = alternatives.get_values_for_type(x509.DNSName)
    return (*(host.lower() for host in hosts), *map(str, alternatives.get_values_for_type(x509.IPAddress)))
