"""Named meshes of this user: the context `default`, which is `profile.json`, and others, which are `contexts/NAME.json` beside it.

Invariant: LLAMESH_CONTEXT names the context of one shell, the file `context` that of all others. A context that is named there and does
not exist is an error: no other mesh is used in its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from llamesh.locations import expanded
from llamesh.private_files import write_private

DEFAULT = "default"
"""The context that always exists: the mesh of this machine, or that of the last login without a context."""
VARIABLE = "LLAMESH_CONTEXT"
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class NoMeshSelectedError(LookupError):
    """The environment and the kept logins select no mesh that can be used."""


class ContextNotFoundError(NoMeshSelectedError):
    """A context does not exist."""

    def __init__(self, name: str, source: str = "") -> None:
        super().__init__(f"no context is named {name!r}" + (f", which {source} names" if source else ""))
        self.source = source
        """What names it: LLAMESH_CONTEXT or the path of the file; empty if a caller has named it."""


class ContextUnreadableError(NoMeshSelectedError):
    """The file of the selected context is damaged, or may not be read."""

    def __init__(self, name: str, file: Path) -> None:
        super().__init__(f"the context {name!r} cannot be read: {file}")
        self.name = name
        """Its name."""


def config_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of logins and contexts."""
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else expanded("~/.config", "XDG_CONFIG_HOME")) / "llamesh"


def is_name(name: str) -> bool:
    """Whether a context may have this name, which is also the name of a file."""
    return bool(_NAME.fullmatch(name))


def context_path(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The file of a context. ValueError if it is not the name of one."""
    folder = config_folder(environment)
    if name == DEFAULT:
        return folder / "profile.json"
    if not is_name(name):
        raise ValueError(f"{name!r} is not a name of a context: {NAME_RULE}")
    return folder / "contexts" / f"{name}.json"


def context_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The names of all contexts, `default` first."""
    try:
        found = [file.stem for file in (config_folder(environment) / "contexts").glob("*.json") if is_name(file.stem)]
    except OSError:
        found = []
    return [DEFAULT, *sorted(name for name in found if name != DEFAULT)]


def selected_context(environment: Mapping[str, str] = os.environ) -> str:
    """Name of the selected context. ContextNotFoundError if it does not exist."""
    source, name = VARIABLE, environment.get(VARIABLE, "").strip()
    if not name:
        file = _selection(environment)
        source, name = str(file), _content(file)
    if name == DEFAULT or not name:
        return DEFAULT
    if not is_name(name) or not context_path(name, environment).is_file():
        raise ContextNotFoundError(name, source)
    return name


def select_context(name: str, environment: Mapping[str, str] = os.environ) -> None:
    """Select a context for all shells. ContextNotFoundError if it does not exist; OSError."""
    if name not in context_names(environment):
        raise ContextNotFoundError(name)
    if name == DEFAULT:
        _selection(environment).unlink(missing_ok=True)
        return
    write_private(_selection(environment), f"{name}\n".encode())


def remove_context(name: str, environment: Mapping[str, str] = os.environ) -> None:
    """Remove a context and its token from this machine. If it was selected, `default` is. ContextNotFoundError; OSError."""
    if name not in context_names(environment) or name == DEFAULT:
        raise ContextNotFoundError(name)
    if _content(_selection(environment)) == name:
        # First: a kill in between must not leave the name of a context that does not exist.
        select_context(DEFAULT, environment)
    context_path(name, environment).unlink(missing_ok=True)


def _selection(environment: Mapping[str, str]) -> Path:
    return config_folder(environment) / "context"


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")[:1000].strip()
    except (OSError, ValueError):
        return ""
