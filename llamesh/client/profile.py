"""Selects the mesh and its token: LLAMESH_URL, else the context of LLAMESH_CONTEXT, else the mesh of LLAMESH_HOME, else the one selected.

Invariant: what one of these variables names is used, or an error says why it cannot be; no other mesh is used. The context `default` has
what `llamesh login` wrote: a profile of this machine there, or none, selects the mesh that runs in the default home, at its present ports.
Any other context selects exactly its address. A token of a mesh of this machine is used
only while that mesh runs: afterwards another user's program may listen at its port. Nothing heavy is imported: the command line reads the
profile before it loads gRPC.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from llamesh.client.contexts import (
    DEFAULT,
    VARIABLE,
    ContextNotFoundError,
    ContextUnreadableError,
    NoMeshSelectedError,
    context_path,
    selected_context,
)
from llamesh.local_mesh import Addresses, running_here
from llamesh.locations import home_directory
from llamesh.private_files import write_private

DEFAULT_URL = "http://localhost:8200"
DEFAULT_PORT = 8200
DEFAULT_INFERENCE_PORT = 8080
HTTPS_PORT = 443
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
"""Hosts of addresses that lead to this machine."""


class NoMeshRunsError(NoMeshSelectedError):
    """LLAMESH_HOME is set, and no mesh runs there, or none that this user may see."""

    def __init__(self, home: Path, logged_in: str) -> None:
        super().__init__(f"no mesh runs in LLAMESH_HOME={home}" + (" that this user may see" if _closed(home) else ""))
        self.logged_in = logged_in
        """The address of the mesh that the profile is logged in at; empty if there is no profile."""


class InferencePortError(NoMeshSelectedError):
    """The given address is the inference address of this machine's mesh; the management address is needed."""

    def __init__(self, given: str, management: str) -> None:
        super().__init__(f"{given} is the inference address of the mesh that runs here, not its management address")
        self.management = management
        """The management address of that mesh."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Addresses and token of one mesh."""

    url: str = DEFAULT_URL
    """The management address."""
    token: str = ""
    """Empty: not logged in."""
    inference_url: str = ""
    """The inference address, without /v1. Empty: the management address if it is https at port 443 (a proxy in front of both ports);
    port 8080 of the same host if the management port is 8200."""
    home: str = ""
    """Home of the mesh of this machine that gave the token. Empty: it is another machine's, or its home is not known."""

    @property
    def inference(self) -> str:
        """The inference address. ValueError if it is not known: a mesh whose management port was moved may have moved this one too, and
        at the default port another mesh may listen."""
        if self.inference_url:
            return self.inference_url.rstrip("/")
        parts = urlsplit(self.url)
        scheme = "https" if parts.scheme == "https" else "http"
        if scheme == "https" and parts.port in (None, HTTPS_PORT):
            return self.url.rstrip("/")
        if parts.port not in (None, DEFAULT_PORT):
            raise ValueError(f"the inference address of the mesh at {self.url} is not known: set LLAMESH_INFERENCE_URL")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{scheme}://{host}:{DEFAULT_INFERENCE_PORT}"


def _closed(home: Path) -> bool:
    """Whether a home exists that this user may not read."""
    try:
        return home.is_dir() and not os.access(home, os.R_OK | os.X_OK)
    except PermissionError:
        return True
    except OSError:
        # Such a path, for instance one that is too long, names no home.
        return False


def stored_profile(environment: Mapping[str, str] = os.environ, context: str = DEFAULT) -> Profile | None:
    """Read the profile of a context; None if there is none that can be read."""
    try:
        found = json.loads(context_path(context, environment).read_text(encoding="utf-8"))
        return Profile(**{key: str(found[key]) for key in ("url", "token", "inference_url", "home") if key in found})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def load_profile(environment: Mapping[str, str] = os.environ) -> Profile:
    """Combine the environment with the selected context. Its token is sent only to the mesh that issued it.

    NoMeshRunsError if LLAMESH_HOME selects the mesh, and none runs there. InferencePortError if LLAMESH_URL or the context names the
    inference port of the mesh that runs here. ContextNotFoundError and ContextUnreadableError if the selected context cannot be used.
    """
    if environment.get(VARIABLE, "").strip() == DEFAULT:
        # The variable goes before LLAMESH_HOME.
        environment = {**environment, "LLAMESH_HOME": ""}
    url = with_scheme(environment.get("LLAMESH_URL", "").strip().rstrip("/"))
    context = usable_context(environment, given=url)
    stored = stored_profile(environment, context)
    if context != DEFAULT and not url:
        if stored is None:
            raise ContextUnreadableError(context, context_path(context, environment))
        url = stored.url
    kept = _without_token_of_ended_mesh(stored or Profile(), environment)
    given = bool(environment.get("LLAMESH_HOME")) and not url
    here = running_here(environment) if given or on_this_machine(url or kept.url) else None
    if given and here is None:
        raise NoMeshRunsError(home_directory(environment), stored.url if stored else "")
    if here:
        _refuse_inference_port(url, here)
    if here and (not url or urlsplit(url).port == urlsplit(here.management).port):
        # A token that another mesh of this machine gave is refused there, not leaked.
        token = kept.token if on_this_machine(kept.url) else ""
        kept = Profile(url or here.management, token, here.inference, kept.home)
    elif url and url != kept.url:
        kept = Profile(url)
    return replace(
        kept,
        token=environment.get("LLAMESH_TOKEN", "").strip() or kept.token,
        inference_url=with_scheme(environment.get("LLAMESH_INFERENCE_URL", "").strip()) or kept.inference_url,
    )


def usable_context(environment: Mapping[str, str] = os.environ, given: str = "") -> str:
    """Name of the context that counts. ContextNotFoundError if it does not exist, unless an address is `given`, which needs none."""
    if environment.get("LLAMESH_HOME") and not environment.get(VARIABLE, "").strip():
        return DEFAULT
    try:
        return selected_context(environment)
    except ContextNotFoundError:
        if not given:
            raise
        return DEFAULT


def _without_token_of_ended_mesh(kept: Profile, environment: Mapping[str, str]) -> Profile:
    ended = kept.home and running_here({**environment, "LLAMESH_HOME": kept.home}) is None
    return replace(kept, token="") if ended else kept


def home_of(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """Home of the mesh of this machine at a management address; empty if the address is another's."""
    here = running_here(environment) if on_this_machine(url) else None
    same = here and urlsplit(url).port == urlsplit(here.management).port
    return str(home_directory(environment)) if same else ""


def check_management(url: str, environment: Mapping[str, str] = os.environ) -> None:
    """Check an address that was given. InferencePortError if it is the inference address of the mesh that runs here."""
    here = running_here(environment) if on_this_machine(url) else None
    if here:
        _refuse_inference_port(url, here)


def _refuse_inference_port(url: str, here: Addresses) -> None:
    if not url or not on_this_machine(url):
        return
    port = urlsplit(url).port
    if port == urlsplit(here.inference).port and port != urlsplit(here.management).port:
        raise InferencePortError(url, here.management)


def with_scheme(url: str) -> str:
    """Complete an address that a person wrote: the default scheme is http."""
    return url if not url or "://" in url else f"http://{url}"


def on_this_machine(url: str) -> bool:
    """Whether an address is one of this machine's own."""
    try:
        parts = urlsplit(url)
        return parts.hostname in THIS_MACHINE and parts.port != 0
    except ValueError:  # no address, or no port: who connects says so
        return False


def context_of(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """Name of the context that keeps a login at an address: the selected one if it has that address, else `default`."""
    context = usable_context(environment, given=url)
    stored = stored_profile(environment, context)
    return context if stored is not None and stored.url == url else DEFAULT


def save_profile(profile: Profile, environment: Mapping[str, str] = os.environ, context: str = DEFAULT) -> Path:
    """Write the profile of a context, readable for this user only, in one step."""
    path = context_path(context, environment)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, json.dumps(asdict(profile), indent=2).encode())
    return path
