"""Prints the addresses of a mesh that is ready, for this machine and for others."""

from __future__ import annotations

import contextlib

from llamesh.cli.mesh.host_names import outward_addresses
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.cli.printing import say
from llamesh.names import ENVOY


def show_addresses(settings: MeshSettings) -> None:
    """Print the addresses. A closed output is not an error."""
    with contextlib.suppress(OSError):
        say("\n".join(lines(settings, outward_addresses())))


def lines(settings: MeshSettings, outward: list[str]) -> list[str]:
    """The addresses, one line each; those for other machines only if these reach the mesh. Without Envoy here: those of the members."""
    if not settings.runs(ENVOY):
        here = {name: address for name, address in settings.member_addresses.items() if settings.runs(name)}
        return [*(f"  {name:<11} {address}" for name, address in here.items()), f"  logs        {settings.logs}"]
    found = [
        f"  management  {settings.addresses.management}   (llamesh login)",
        f"  inference   {settings.addresses.inference}/v1",
    ]
    for host in hosts_for_others(settings, outward):
        found.append(f"  from other machines   {settings.url_at(host, settings.gateway_port)}")
        found.append(f"                        {settings.url_at(host, settings.inference_port)}/v1")
    return [*found, f"  logs        {settings.logs}"]


def hosts_for_others(settings: MeshSettings, outward: list[str]) -> list[str]:
    """Return the names or addresses by which other machines reach the mesh: from the settings, else this machine's addresses."""
    if settings.loopback:
        return []
    if settings.public_host != "localhost":
        return [settings.public_host]
    wildcards = {"0.0.0.0": ".", "::": ":"}  # noqa: S104 compared, not bound
    bound = settings.listens_on[0]
    if bound not in wildcards:
        return [bound]
    return [address for address in outward if wildcards[bound] in address]


def warning_of_clear_passwords(settings: MeshSettings) -> str:
    """A sentence if passwords and tokens would cross a network unencrypted; empty otherwise."""
    if settings.tls or settings.loopback or not settings.runs(ENVOY):
        return ""
    return (
        "passwords, tokens and prompts cross the network in clear: `llamesh tls init` makes a certificate, or put a proxy"
        " with TLS in front and bind to loopback"
    )
