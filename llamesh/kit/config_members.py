"""The settings of members that call each other over TCP. `Settings` in `config.py` has them too."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import BaseSettings, NoDecode

from llamesh.kit.config_types import Directory, Port, named
from llamesh.kit.origins import read_host_and_port
from llamesh.names import ENVOY, MEMBERS, WAKER

_CALLED = (*(name for name in MEMBERS if name != ENVOY), WAKER)
"""The members that have an address, and the waker of the controller, which has its own."""


def _read_addresses(value: object) -> object:
    """Read member=host:port pairs."""
    if not isinstance(value, str):
        return value
    found: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in value.split(","))):
        member, _, address = part.partition("=")
        if member.strip() not in _CALLED:
            raise ValueError(
                f"{member.strip()!r} is none of {', '.join(_CALLED)}: write for instance gateway=host:port"
            )
        found[member.strip()] = read_host_and_port(address.strip())
    return found


def _read_address(value: str) -> str:
    if value:
        try:
            ip_address(value.strip("[]"))
        except ValueError:
            raise ValueError(f"{value!r} is no IP address of this machine: write for instance 0.0.0.0") from None
    return value.strip("[]")


def _read_domain(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", value):
        raise ValueError(f"{value!r} is no name of a mesh: write lower-case letters, digits, dots and hyphens")
    return value


class MemberSettings(BaseSettings):
    """See Settings."""

    member_addresses: Annotated[dict[str, str], NoDecode, BeforeValidator(_read_addresses)] = named(
        "LLAMESH_MEMBER_ADDRESSES",
        {},
        "Addresses at which members reach each other and Envoy reaches them over TCP with mutual TLS, as member=host:port,... with the"
        " members gateway, contract, download, controller, quant, and waker. A member that is not named has a Unix socket only.",
    )
    member_bind: Annotated[str, AfterValidator(_read_address)] = named(
        "LLAMESH_MEMBER_BIND",
        "",
        "IP address at which a member listens, with the port of its own entry in LLAMESH_MEMBER_ADDRESSES. Unset: that entry's host.",
    )
    member_certificates: Directory | None = named(
        "LLAMESH_MEMBER_CERTIFICATES",
        None,
        "Folder with tls.crt, tls.key and ca.crt of this member; {member} in it stands for the member's name. Needed for"
        " LLAMESH_MEMBER_ADDRESSES.",
    )
    trust_domain: Annotated[str, AfterValidator(_read_domain)] = named(
        "LLAMESH_TRUST_DOMAIN",
        "llamesh",
        "Name of the mesh in the certificates of its members, spiffe://NAME/MEMBER. Meshes that share an authority need different names.",
    )
    probe_port: Port = named(
        "LLAMESH_PROBE_PORT",
        0,
        "Port at which a member answers the kubelet's probes: grpc.health.v1.Health without TLS, readiness as the empty service and"
        " liveness as the service live, at LLAMESH_MEMBER_BIND or all addresses. For one member in a pod of its own. 0: none.",
    )
