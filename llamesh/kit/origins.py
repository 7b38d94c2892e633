"""Reads origins and host names from settings.

Invariant: an accepted entry is one that a browser sends, or a safe pattern. An entry that could never match is an
error with a remedy.
"""

from __future__ import annotations

import re

_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*"
_HOST = rf"({_NAME}|\[[0-9a-f:.]+\])"
_ORIGIN = re.compile(rf"https?://{_HOST}(:[0-9]{{1,5}})?")
_SCHEME_OF_AN_APP = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://[a-z0-9.-]*")
# At least two labels: a pattern for a whole top-level domain would allow unknown sites. Only https: over http, any machine on the path
# can answer for the name.
_PATTERN = re.compile(rf"https://\*(\.{_LABEL}){{2,}}(:[0-9]{{1,5}})?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def read_origin(text: str) -> str:
    """Read an origin of LLAMESH_ALLOWED_ORIGINS; ValueError with the remedy if no browser would send it."""
    origin = text.lower()
    if "*" in origin and not _PATTERN.fullmatch(origin):
        raise ValueError(
            f"{text} is not a pattern of origins: list each origin, or write https://*.example.com for all below a domain,"
            " with at least two names after the star"
        )
    if "*" not in origin and not _ORIGIN.fullmatch(origin) and not _SCHEME_OF_AN_APP.fullmatch(origin):
        raise ValueError(
            f"{text} is not an origin: write scheme, host and port as a browser does, such as http://localhost:5173"
        )
    scheme, _, host = origin.partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    # Browsers omit the default port.
    return origin.removesuffix(f":{port}") if port and not host.endswith("]") else origin


def read_host_and_port(text: str) -> str:
    """Read an entry of LLAMESH_HTTP_SOURCE_HOSTS; ValueError if it has no port, because it would match no address."""
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}", text):
        raise ValueError(f"{text} is not HOST:PORT: write for instance localhost:8000")
    return text.lower()


def is_pattern(origin: str) -> bool:
    """Whether an origin is a pattern for all hosts below a domain."""
    return "*" in origin


def expression(pattern: str) -> str:
    """Return a pattern as a regular expression (RE2) for a whole origin."""
    return re.escape(pattern).replace(r"\*", r"[a-z0-9-]+(\.[a-z0-9-]+)*")


def read_host(text: str) -> str:
    """Read a host name of LLAMESH_ALLOWED_HOSTS; ValueError with the remedy if it could never match."""
    host = text.lower().removesuffix(".")
    if not re.fullmatch(_HOST, host):
        raise ValueError(
            f"{text} is not a host name: write it without scheme, port and pattern, such as llm.example.com"
        )
    return host
