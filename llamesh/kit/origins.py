"""Origins and host names as settings have them: what is accepted is what a browser will send, or a pattern that is safe.

Invariant: an entry that could never match is refused when it is read, with what to write instead.
"""

from __future__ import annotations

import re

_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*"
_HOST = rf"({_NAME}|\[[0-9a-f:.]+\])"
_ORIGIN = re.compile(rf"https?://{_HOST}(:[0-9]{{1,5}})?")
_SCHEME_OF_AN_APP = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://[a-z0-9.-]*")
# Two labels at least: a pattern for a whole top-level domain would be one for strangers. Only https: what another machine on the way says
# for http is nobody's.
_PATTERN = re.compile(rf"https://\*(\.{_LABEL}){{2,}}(:[0-9]{{1,5}})?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def read_origin(text: str) -> str:
    """An origin of LLAMESH_ALLOWED_ORIGINS. ValueError with the remedy where no browser would send it."""
    origin = text.lower()
    if "*" in origin and not _PATTERN.fullmatch(origin):
        raise ValueError(
            f"{text} is no pattern of origins: name each origin, or all below a domain as https://*.example.com, with at least two names"
            " behind the star"
        )
    if "*" not in origin and not _ORIGIN.fullmatch(origin) and not _SCHEME_OF_AN_APP.fullmatch(origin):
        raise ValueError(
            f"{text} is no origin: write scheme, host and port as a browser does, such as http://localhost:5173"
        )
    scheme, _, host = origin.partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    # A browser leaves the usual port out.
    return origin.removesuffix(f":{port}") if port and not host.endswith("]") else origin


def is_pattern(origin: str) -> bool:
    """Whether an origin that was read stands for all below a domain."""
    return "*" in origin


def expression(pattern: str) -> str:
    """A pattern as a regular expression (RE2) for a whole origin."""
    return re.escape(pattern).replace(r"\*", r"[a-z0-9-]+(\.[a-z0-9-]+)*")


def read_host(text: str) -> str:
    """A host name of LLAMESH_ALLOWED_HOSTS. ValueError with the remedy where it could never match."""
    host = text.lower().removesuffix(".")
    if not re.fullmatch(_HOST, host):
        raise ValueError(f"{text} is no host name: write it without scheme, port and pattern, such as llm.example.com")
    return host
