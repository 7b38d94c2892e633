"""The mesh that a command talks to. gRPC and the contracts are imported here, inside the command, and nowhere before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamesh.cli.failure import CommandError, Exit
from llamesh.client.profile import load_profile

if TYPE_CHECKING:
    from llamesh.client.sync import Client


@contextmanager
def connected(url: str = "") -> Iterator[Client]:
    """A client for an address, else for LLAMESH_URL or the profile. CommandError where address or token cannot be one."""
    from llamesh.client.sync import Client

    try:
        client = Client(url)
    except ValueError as error:
        raise not_an_address(url or load_profile().url) from error
    check_token(client.transport.token)
    with client as mesh:
        yield mesh


def not_an_address(url: str) -> CommandError:
    """What is said of an address that is none."""
    return CommandError(f"{url!r} is not an address like http://localhost:8200", code=Exit.USAGE)


def check_token(token: str) -> None:
    """Refuse what no header can carry: most likely something else than a token was copied."""
    if not (token.isascii() and (token.isprintable() or not token)):
        raise CommandError("LLAMESH_TOKEN holds no token", hint="llamesh login", code=Exit.NOT_SIGNED_IN)
