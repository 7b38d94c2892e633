"""The pip command that completes this installation of llamesh, with the Python that runs. It imports the standard library only.

Invariant: the command works today. llamesh is on no package index, so the command names what was installed: the checkout or the wheel.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamesh import __version__


def install_command(*extras: str) -> str:
    """Return the command that adds extras to this installation, for messages."""
    return command_of(_record(), __version__, extras, sys.executable)


def command_of(record: str, version: str, extras: tuple[str, ...], python: str) -> str:
    """Return the command for an installation of a Python with this direct_url.json (PEP 610); empty: the origin is not known."""
    try:
        found = json.loads(record)
        place = unquote(urlsplit(found["url"]).path) if found["url"].startswith("file:") else ""
        editable = bool(found.get("dir_info", {}).get("editable"))
    except (ValueError, KeyError, TypeError, AttributeError):
        place, editable = "", False
    # A wheel is often removed after its installation.
    if not place or not Path(place).exists():
        place, editable = f"llamesh-{version}-py3-none-any.whl", False
    named = shlex.quote(f"{place}[{','.join(extras)}]")
    quoted = named if named.startswith("'") else f"'{named}'"
    return f"{shlex.quote(python)} -m pip install {'-e ' if editable else ''}{quoted}"


def _record() -> str:
    # Slow to import, and needed only for a failure.
    from importlib import metadata

    try:
        return metadata.distribution("llamesh").read_text("direct_url.json") or ""
    except metadata.PackageNotFoundError:
        return ""
