"""Connects a command to its mesh. gRPC and the contracts are imported only here, when a command runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.silence import bound
from llamesh.client.contexts import (
    DEFAULT,
    VARIABLE,
    ContextNotFoundError,
    ContextUnreadableError,
    NoMeshSelectedError,
)
from llamesh.client.profile import (
    DEFAULT_PORT,
    InferencePortError,
    NoMeshRunsError,
    Profile,
    check_management,
    load_profile,
    on_this_machine,
    stored_profile,
    usable_context,
    with_scheme,
)
from llamesh.client.trust import UntrustedError
from llamesh.local_mesh import running_here
from llamesh.locations import home_directory

if TYPE_CHECKING:
    from llamesh.client.sync import Client

NEEDS_TLS = "This port speaks TLS"
"""Beginning of the message of a port with TLS for a program that sends plain HTTP."""
LISTENS_SECONDS = 2.0
"""Deadline in seconds of a connection that only shows whether a program listens."""
UNVERIFIED = "CERTIFICATE_VERIFY_FAILED"
"""OpenSSL's reason for the refusal of a server's certificate, in the errors of Python and gRPC."""


WITHOUT_TLS = "WRONG_VERSION_NUMBER"
"""OpenSSL's reason if a port answers a TLS handshake in clear text, in the errors of Python and gRPC."""


@contextmanager
def connected(url: str = "") -> Iterator[Client]:
    """Return a client for an address, else for the selected mesh. CommandError if address or token is invalid, or no mesh is selected."""
    from llamesh.client.sync import Client

    url = with_scheme(url.strip())
    try:
        check_management(url)
        client = Client(url)
    except NoMeshSelectedError as error:
        raise not_selected(error, "--url" if url else "") from error
    except UntrustedError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    except ValueError as error:
        raise not_an_address(url or load_profile().url) from error
    check_token(client.transport.token)
    bound(client)
    with client as mesh:
        yield mesh


def check_gateway(mesh: Client, timeout: float) -> None:
    """Raise the MeshError by which a port of another service says that it is not the gateway. Other errors are ignored.

    `timeout`: deadline of the call in seconds.
    """
    from llamesh.client.errors import MeshError

    try:
        # Any call that the gateway alone answers; there need not be such a model.
        mesh.models.get("none", by_name=False, timeout=timeout)
    except MeshError as error:
        if error.reason == "NOT_IMPLEMENTED":
            raise


def log_in(mesh: Client, username: str, password: str) -> str:
    """Get a token and store it in the profile. Return a description for people."""
    from llamesh.client.profile import Profile, context_of, home_of, save_profile

    answer = mesh.login(username, password)
    inference = os.environ.get("LLAMESH_INFERENCE_URL") or mesh.profile.inference_url
    url = mesh.profile.url
    path = save_profile(Profile(url, answer.access_token, inference, home_of(url)), context=context_of(url))
    return f"at {url} for {answer.expires_in / 3600:.0f} h; kept in {path}"


def meant() -> Profile:
    """Return the selected mesh. CommandError if LLAMESH_HOME is set and no mesh runs there, or LLAMESH_URL names an inference port."""
    try:
        return load_profile()
    except NoMeshSelectedError as error:
        raise not_selected(error) from error


def elsewhere(environment: Mapping[str, str] = os.environ) -> str:
    """Return the address of the selected mesh if it is not the mesh of the home on this machine; empty if it is, or if none is selected.

    A loopback address may lead into a container, through `ssh -L` or to the mesh of another home: if no mesh of this home runs and a
    program listens, it is another mesh, unless the address is this home's own. If its mesh has ended, anybody may listen there.
    """
    try:
        url = load_profile(environment).url
    except NoMeshSelectedError:
        return ""
    if not on_this_machine(url):
        return url
    here = running_here(environment)
    if here:
        return url if urlsplit(here.management).port != urlsplit(url).port else ""
    return url if not _is_of_this_home(environment) and _listens(url) else ""


def _is_of_this_home(environment: Mapping[str, str]) -> bool:
    """Whether the selected address is that of the mesh of this home: the default, or that of a login at this home's mesh."""
    if environment.get("LLAMESH_URL", "").strip():
        return False
    stored = stored_profile(environment, usable_context(environment))
    return stored is None or stored.home == str(home_directory(environment))


def _listens(url: str) -> bool:
    """Whether a program of this machine listens at a loopback address."""
    import socket

    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or DEFAULT_PORT), LISTENS_SECONDS).close()
    except OSError:
        return False
    return True


def not_selected(error: NoMeshSelectedError, option: str = "") -> CommandError:
    """The failure if no mesh is selected that can be used. `option`: the one that gave the address, if one did."""
    if isinstance(error, NoMeshRunsError):
        return _no_mesh_runs(error)
    if isinstance(error, InferencePortError):
        return _wrong_port(error, option)
    if isinstance(error, ContextUnreadableError):
        hint = f"`llamesh context rm {error.name}`, then `llamesh context add {error.name} URL`"
        return CommandError(str(error), hint=hint, code=Exit.USAGE)
    hint, code = "`llamesh context` lists them", Exit.NOT_FOUND
    if isinstance(error, ContextNotFoundError) and error.source:
        unset = f"unset {VARIABLE}" if error.source == VARIABLE else f"`llamesh context use {DEFAULT}`"
        hint += f"; {unset}, for the mesh of this machine or of the last login"
        code = Exit.USAGE
    return CommandError(str(error), hint=hint, code=code)


def _no_mesh_runs(error: NoMeshRunsError) -> CommandError:
    """The failure if no mesh runs in the given home."""
    hint = "`llamesh up` starts it there; LLAMESH_URL names another mesh"
    if error.logged_in:
        hint += f"; without LLAMESH_HOME the mesh at {error.logged_in} is used, where you are logged in"
    return CommandError(str(error), hint=hint, code=Exit.UNAVAILABLE)


def _wrong_port(error: InferencePortError, option: str) -> CommandError:
    """The failure if an option, a variable or a context names the inference port instead of the management port."""
    named = option or ("LLAMESH_URL" if os.environ.get("LLAMESH_URL", "").strip() else "the selected context")
    right = f"{option} {error.management}" if option else f"LLAMESH_URL={error.management}"
    hint = f"{right}; requests for models go to LLAMESH_INFERENCE_URL"
    return CommandError(f"{named}: {error}", hint=hint, code=Exit.USAGE)


def inference_asked(url: str) -> CommandError:
    """The failure if the answer to a management call is an error in OpenAI's format."""
    return CommandError(
        f"{url} is an inference address, not the management address of a mesh",
        hint=f"LLAMESH_URL={_at_port(url, DEFAULT_PORT)}, unless that mesh has another management port",
        code=Exit.USAGE,
    )


def other_service(
    url: str, known: Mapping[str, str] = MappingProxyType({}), option: str = "LLAMESH_URL="
) -> CommandError:
    """The failure if a call of the gateway was sent to a port of another service, such as 8201 or 8202.

    `known`: metadata of the refusal: `service`, and the `port` of the gateway. `option`: what the right address is put after.
    """
    here = running_here(os.environ) if on_this_machine(url) else None
    port = known.get("port", "")
    right = here.management if here else _at_port(url, int(port) if port.isdecimal() else DEFAULT_PORT)
    service = f"the {known['service']} service" if known.get("service") else "another service"
    return CommandError(
        f"{url} is the port of {service}, not the management address of a mesh",
        hint=f"{option}{right}" + ("" if here else ", unless that mesh has another management port"),
        code=Exit.USAGE,
    )


def _at_port(url: str, port: int) -> str:
    return _address(urlsplit(url).scheme, urlsplit(url).hostname or "", port)


def _address(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def encrypted(url: str) -> CommandError | None:
    """The failure if plain HTTP was sent to a port that speaks TLS. None if the address is not one of plain HTTP."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return None
    right = _address("https", parts.hostname, parts.port or DEFAULT_PORT)
    return CommandError(f"{url} speaks TLS", hint=f"use {right}", code=Exit.USAGE)


def clear_text(url: str) -> CommandError:
    """The failure if an https address leads to a port without TLS."""
    return CommandError(
        f"{url} does not speak TLS",
        hint=f"use http://{urlsplit(url).netloc}, or `llamesh tls init` on the mesh's machine gives it a certificate",
        code=Exit.USAGE,
    )


def start_hint(url: str) -> str:
    """What to do if nobody answers at an address. Only a mesh of this machine can be started here; empty: none is selected."""
    if not url or on_this_machine(url):
        return "start it with `llamesh up`, or name it with LLAMESH_URL; `llamesh doctor` explains"
    return "start it on its machine, or correct the address; a firewall may be in between"


def not_llamesh(url: str) -> CommandError:
    """The failure if another program answers at the address of a mesh."""
    hint = "correct LLAMESH_URL, or unset it for the mesh of this machine; a proxy before the mesh must pass gRPC on"
    return CommandError(f"something else than llamesh answers at {url}", hint=hint, code=Exit.UNAVAILABLE)


def untrusted(url: str, words: str) -> CommandError:
    """The failure if the certificate at an address was refused; `words`: OpenSSL's, of Python or gRPC."""
    hint = "`llamesh tls trust ca.pem`, with the file of the mesh's authority, LLAMESH_HOME/tls/ca.pem on its machine"
    if "expired" in words:
        hint = "renew it on the mesh's machine: `llamesh tls init --renew`"
    if "mismatch" in words:
        hint = "use a name of the certificate, or add this one on the mesh's machine: `llamesh tls init --name NAME`"
    return CommandError(f"{url}: its certificate is not trusted", parts=[words], hint=hint, code=Exit.USAGE)


def not_an_address(url: str) -> CommandError:
    """The failure for an invalid address."""
    return CommandError(f"{url!r} is not an address like http://localhost:8200", code=Exit.USAGE)


def check_token(token: str) -> None:
    """Refuse a token with characters that no header can have: most likely something else was copied."""
    if not (token.isascii() and (token.isprintable() or not token)):
        raise CommandError("LLAMESH_TOKEN holds no token", hint="llamesh login", code=Exit.NOT_SIGNED_IN)
