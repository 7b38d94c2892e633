"""Variables that let programs trust the certificate of a mesh: curl, OpenSSL, Python, Node.js and gRPC.

Most of these programs replace the authorities of the system by those of the file that a variable names. Invariant: that file holds all
authorities that were trusted before, and those of the mesh, so that the programs still reach other hosts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from llamesh.cli.failure import CommandError, Exit
from llamesh.client.contexts import config_folder
from llamesh.client.trust import UntrustedError, authority, own_authority, system_authorities
from llamesh.locations import home_directory
from llamesh.private_files import write_private

NAME = "ca-bundle.pem"
OPENSSL, CURL, REQUESTS, NODE = "SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"
GRPC = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
REPLACING = (OPENSSL, CURL, REQUESTS, GRPC)
"""Variables that name the only authorities of a program."""


def trust_variables(url: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables for the mesh at an address; none without TLS or without an authority of the mesh's own.

    Writes the file that they name. CommandError if a file of authorities cannot be read or written.
    """
    if not url.startswith("https://"):
        return {}
    try:
        own = authority(url, environment)
    except UntrustedError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    if own is None:
        return {}
    own = own.absolute()
    target = _place(own, environment)
    before = [Path(environment[name]).absolute() for name in REPLACING if environment.get(name)]
    try:
        content = _joined(own, before or [found for found in [system_authorities()] if found])
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(target, content)
    except OSError as error:
        hint = f"correct or unset the variable that names it: {', '.join(REPLACING)}, LLAMESH_CA"
        raise CommandError(f"{error.filename}: {error.strerror}", hint=hint) from error
    return {**dict.fromkeys(REPLACING, str(target)), NODE: str(own)}


def _place(own: Path, environment: Mapping[str, str]) -> Path:
    """The file of the bundle: in the home of the mesh if the authority is there, else beside the profile."""
    at_home = own == own_authority(home_directory(environment)) and os.access(own.parent, os.W_OK)
    return own.with_name(NAME) if at_home else config_folder(environment).absolute() / NAME


def _joined(own: Path, before: list[Path]) -> bytes:
    """The content of the files, each once. A bundle that an earlier `llamesh env` wrote holds the mesh's authority already."""
    contents = [file.read_bytes().strip() for file in dict.fromkeys(before)]
    wanted = own.read_bytes().strip()
    if not any(wanted in content for content in contents):
        contents.append(wanted)
    return b"\n".join(contents) + b"\n"
