"""Which mesh is meant and with which token: LLAMESH_URL and LLAMESH_TOKEN, else the profile that `llamesh login` wrote.

A profile of this machine (or none) means the mesh that runs here, at whatever ports it runs now. Nothing heavy is imported: the
command line reads it before it loads gRPC.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from llamesh.local_mesh import running_here

DEFAULT_URL = "http://localhost:8200"
DEFAULT_PORT = 8200
DEFAULT_INFERENCE_PORT = 8080
_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Profile:
    """One mesh as its user knows it."""

    url: str = DEFAULT_URL
    """The management address."""
    token: str = ""
    """Empty: not signed in."""
    inference_url: str = ""
    """The inference address, without /v1. Empty: with TLS the management address; beside port 8200 port 8080 of the same host."""

    @property
    def inference(self) -> str:
        """The inference address. ValueError if it is not known: a mesh whose management port was moved may have moved this one too, and
        at the default port another mesh may listen."""
        if self.inference_url:
            return self.inference_url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            return self.url.rstrip("/")
        if parts.port not in (None, DEFAULT_PORT):
            raise ValueError(f"the inference address of the mesh at {self.url} is not known: set LLAMESH_INFERENCE_URL")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"http://{host}:{DEFAULT_INFERENCE_PORT}"


def profile_path(environment: Mapping[str, str] = os.environ) -> Path:
    """The profile's file."""
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "llamesh" / "profile.json"


def load_profile(environment: Mapping[str, str] = os.environ) -> Profile:
    """What the environment says, completed by the file. The file's token goes only to the mesh that it came from."""
    try:
        found = json.loads(profile_path(environment).read_text())
        kept = Profile(**{key: str(found[key]) for key in ("url", "token", "inference_url") if key in found})
    except (OSError, ValueError, TypeError, AttributeError):
        kept = Profile()
    url = environment.get("LLAMESH_URL", "").rstrip("/")
    here = running_here(environment) if _is_local(url or kept.url) else None
    if here and (not url or urlsplit(url).port == urlsplit(here.management).port):
        # A token that another mesh of this machine gave is refused there, not leaked.
        kept = Profile(url or here.management, kept.token if _is_local(kept.url) else "", here.inference)
    elif url and url != kept.url:
        kept = Profile(url)
    return replace(
        kept,
        token=environment.get("LLAMESH_TOKEN", "").strip() or kept.token,
        inference_url=environment.get("LLAMESH_INFERENCE_URL") or kept.inference_url,
    )


def _is_local(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.hostname in _THIS_MACHINE and parts.port != 0
    except ValueError:  # no address, or no port: who connects says so
        return False


def save_profile(profile: Profile, environment: Mapping[str, str] = os.environ) -> Path:
    """Write the profile, readable for this user only, in one step."""
    path = profile_path(environment)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(profile), file, indent=2)
    unfinished.replace(path)
    return path
