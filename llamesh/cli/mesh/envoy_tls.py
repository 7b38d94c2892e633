"""Envoy's way to the controller over TCP: the additions to the bootstrap, and the files by which Envoy finds its certificate."""

from __future__ import annotations

import json
import string
from datetime import UTC, datetime
from pathlib import Path

import llamesh
from llamesh import envoy_secrets
from llamesh.addresses import host_and_port, is_ip_address
from llamesh.certificates import CertificateError
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.locations import make_private
from llamesh.member_certificates import folder_of, host_name, identity, read
from llamesh.names import CONTROLLER, ENVOY

TEMPLATE = Path(llamesh.__file__).parent.parent / "envoy" / "clusters" / "member_tls.yaml"


def check(settings: MeshSettings) -> None:
    """CommandError with the remedy if members are on TCP and Envoy's certificate cannot be used."""
    if not settings.member_addresses:
        return
    try:
        read(_folder(settings), settings.trust_domain, ENVOY, datetime.now(UTC))
    except CertificateError as error:
        raise CommandError(f"LLAMESH_MEMBER_CERTIFICATES: {error}", hint=error.remedy, code=Exit.USAGE) from error


def write_secrets(settings: MeshSettings) -> None:
    """Write the files by which Envoy finds its certificate, if members are on TCP. Raises OSError."""
    if settings.member_addresses:
        envoy_secrets.write_secrets(_folder(settings), make_private(settings.envoy_files))


def with_tls(bootstrap: str, settings: MeshSettings) -> str:
    """Return the bootstrap with mutual TLS to the controller, if the settings have its address; else unchanged."""
    address = settings.member_addresses.get(CONTROLLER)
    if address is None:
        return bootstrap
    import yaml

    values = {
        "identity": identity(settings.trust_domain, CONTROLLER),
        "host_name": host_name(settings.trust_domain, CONTROLLER),
        "alpn": "h2",
        "certificate_file": str(envoy_secrets.certificate_file(settings.envoy_files)),
        "authorities_file": str(envoy_secrets.authorities_file(settings.envoy_files)),
    }
    found = yaml.safe_load(bootstrap)
    (cluster,) = found["static_resources"]["clusters"]
    cluster |= yaml.safe_load(filled(TEMPLATE, values))
    host, port = host_and_port(address)
    cluster["type"] = "STATIC" if is_ip_address(host) else "STRICT_DNS"
    (locality,) = cluster["load_assignment"]["endpoints"]
    (endpoint,) = locality["lb_endpoints"]
    endpoint["endpoint"]["address"] = {"socket_address": {"address": host, "port_value": port}}
    return json.dumps(found)


def filled(template: Path, values: dict[str, str]) -> str:
    """Return a template of YAML with its placeholders filled. They are in double quotes, and there YAML has the escapes of JSON."""
    escaped = {name: json.dumps(value)[1:-1] for name, value in values.items()}
    return string.Template(template.read_text(encoding="utf-8")).substitute(escaped)


def _folder(settings: MeshSettings) -> Path:
    if settings.member_certificates is None:
        raise CommandError(
            "LLAMESH_MEMBER_ADDRESSES is set and LLAMESH_MEMBER_CERTIFICATES is not: members use TCP with mutual TLS only",
            hint="`llamesh certificates` makes the files; docs/guide/members.md",
            code=Exit.USAGE,
        )
    return folder_of(settings.member_certificates, ENVOY)
