"""The files (SDS) by which Envoy finds its certificate as a member, and the authorities that it trusts.

They hold no secret: they name the files of Envoy's folder, and the directory in which a rename tells Envoy to read them again. The
controller names them to Envoy relative to Envoy's working directory, which is its LLAMESH_HOME: that may be another path on its machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY
from llamesh.private_files import write_private

FOLDER = "run"
"""Folder below Envoy's LLAMESH_HOME with the files that the controller names to it, if members are on TCP."""
_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def certificate_file(folder: Path) -> Path:
    """Return the file that names Envoy's certificate; its secret is `member` (envoy/clusters/member_tls.yaml)."""
    return folder / "envoy-certificate.json"


def authorities_file(folder: Path) -> Path:
    """Return the file that names the authorities; its secret is `authorities`."""
    return folder / "envoy-authorities.json"


def write_secrets(folder: Path, into: Path) -> None:
    """Write both files for Envoy's folder of certificates into another folder. Raises OSError."""
    watched = {"watched_directory": {"path": str(folder)}}
    pair = {
        "certificate_chain": {"filename": str(folder / CERTIFICATE)},
        "private_key": {"filename": str(folder / KEY)},
    }
    context = {"trusted_ca": {"filename": str(folder / AUTHORITIES)}}
    _write(certificate_file(into), {"name": "member", "tls_certificate": pair | watched})
    _write(authorities_file(into), {"name": "authorities", "validation_context": context | watched})


def _write(path: Path, secret: dict[str, Any]) -> None:
    write_private(path, json.dumps({"resources": [{"@type": _TYPE, **secret}]}).encode(), durable=False)
