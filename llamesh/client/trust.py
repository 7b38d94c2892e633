"""Which certificate authorities a mesh's certificate is checked against, for HTTP and for gRPC alike.

LLAMESH_CA names a file; else the one beside the profile (`llamesh tls trust`), else that of the mesh of this machine. Its authorities are
trusted beside those of the system (SSL_CERT_FILE, or Python's).
Invariant: a file that LLAMESH_CA names is read, or it is an error; no certificate goes unchecked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llamesh.client.profile import on_this_machine, profile_path
from llamesh.locations import home_directory

if TYPE_CHECKING:
    import ssl


class UntrustedError(ValueError):
    """A file of authorities that cannot be used."""


def own_authority(home: Path) -> Path:
    """The certificate of the authority that `llamesh tls init` makes."""
    return home / "tls" / "ca.pem"


def kept_authority(environment: Mapping[str, str] = os.environ) -> Path:
    """Where `llamesh tls trust` keeps a certificate."""
    return profile_path(environment).with_name("ca.pem")


def authority(url: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The file of additional authorities for the mesh at an address. None if there is none."""
    if named := environment.get("LLAMESH_CA"):
        return Path(named).expanduser()
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
            raise _unusable(file, error) from error
    return context


def root_certificates(url: str, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The authorities for gRPC as PEM; None for those that gRPC brings. UntrustedError if the file cannot be used."""
    import ssl

    file = authority(url, environment)
    system = environment.get("SSL_CERT_FILE") or (ssl.get_default_verify_paths().cafile if file else None)
    try:
        own = file.read_bytes() if file else b""
        if file and b"-----BEGIN CERTIFICATE-----" not in own:
            raise UntrustedError(f"{file} holds no PEM certificate: LLAMESH_CA names the certificate of an authority")
        others = Path(system).read_bytes() if system else b""
    except OSError as error:
        raise _unusable(Path(error.filename), error) from error
    return own + b"\n" + others if own or others else None


def _unusable(file: Path, error: OSError) -> UntrustedError:
    return UntrustedError(f"the certificates in {file} cannot be used: {error.strerror or error}")
