"""Finds the inference address of the mesh that a command uses: the profile's, else the one in a server's endpoint.

Invariant: the address is never that of another mesh.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit
from llamesh.client.profile import Profile


def inference_address(profile: Profile) -> str:
    """Return the inference address without /v1. CommandError if neither the profile nor the mesh has it."""
    try:
        return profile.inference
    except ValueError as unknown:
        cause = unknown
    from llamesh.client import errors

    try:
        with connected() as mesh:
            endpoint = next((server.endpoint for server in mesh.servers.list() if server.endpoint), "")
    except (errors.Unauthenticated, errors.PermissionDenied) as refused:
        raise CommandError(str(cause), hint="or let the mesh say it: llamesh login", code=Exit.USAGE) from refused
    if not endpoint:
        raise CommandError(str(cause), hint="the mesh says it once a model is served: llamesh serve", code=Exit.USAGE)
    return seen_from_here(endpoint, profile.url)


def seen_from_here(endpoint: str, url: str) -> str:
    """The address in a server's endpoint. A mesh that calls itself localhost is meant where its management address is."""
    there, here = urlsplit(endpoint), urlsplit(url)
    host = here.hostname if there.hostname == "localhost" else there.hostname
    shown = f"[{host}]" if ":" in (host or "") else host
    return f"{there.scheme}://{shown}:{there.port}" if there.port else f"{there.scheme}://{shown}"
