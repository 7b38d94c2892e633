"""Parses addresses of models: their kind, their canonical form, and the nearest valid form of an invalid one. Pure.

Invariant: the command, the client and the download service all parse addresses here, so they accept the same forms.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

from llamesh.hub_addresses import HUB_HOSTS, read_hub_address, read_hub_page
from llamesh.nearest import nearest
from llamesh.part_names import whole_name
from llamesh.registry_addresses import (
    DOCKER_HUB,
    is_ollama_page,
    likely_registry_address,
    read_ollama_page,
    read_registry_address,
)

ADDRESSES = "https://HOST/PATH/FILE.gguf, hf:OWNER/REPO:Q4_K_M, ollama:NAME:TAG, oci://HOST/REPOSITORY:TAG, s3://NAME/KEY, quant:MODEL"
"""The forms of an address, for messages."""
FORMS = f"{ADDRESSES}, or the path of a file: ./FILE.gguf"
"""What the command takes, for messages. A service reads no path: it has another working directory."""

_WITH_VERSION = ("hf", "ollama", "oci")
"""Schemes of addresses that may have an @ before a revision or a digest. Their parsers quote nothing that stands before another @."""
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_SHORT = ("hf", "ollama", "quant")
"""Schemes without //."""
_WITHOUT_SLASH = ("ollama", "quant")
"""Schemes of addresses that may have no / at all, like a model and its tag."""
_LONG = ("https", "http", "oci", "s3", "file")
SCHEMES = (*_LONG, *_SHORT)
"""Every scheme of an address: those of `sources_of` in the download service."""
_OTHER_NAMES = {
    "huggingface": "hf",
    "hugging-face": "hf",
    "hub": "hf",
    "minio": "s3",
    "https+hf": "hf",
    "docker": "oci",
    "registry": "oci",
    "oras": "oci",
}
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+-]{0,15})(?::/{0,3}|/{2,3})(?P<rest>[^/].*)", re.ASCII | re.DOTALL)
_HOST = re.compile(r"(?P<host>(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,})(?::\d+)?/.", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[\w.-]+)?", re.ASCII)


def is_address(word: str) -> bool:
    """Whether a word is meant as an address, valid or not, and not as a path or a name."""
    short = word.lower().startswith(tuple(f"{scheme}:" for scheme in (*_SHORT, "oci")))
    return "://" in word or short or _is_hub_page(word) or is_ollama_page(word)


def canonical(word: str, hub_hosts: Collection[str] = HUB_HOSTS) -> str:
    """Return the canonical form of an address; other words are unchanged. ValueError, with a valid form, for a page without a model."""
    word = word.strip()
    scheme, colon, rest = word.partition(":")
    if colon and scheme.lower() == "hf":
        return str(read_hub_address(word))
    if colon and scheme.lower() in {"ollama", "oci"}:
        return str(read_registry_address(word))
    if colon and scheme.lower() in {"quant", "s3"}:
        return f"{scheme.lower()}:{rest}"
    if is_ollama_page(word):
        return str(read_ollama_page(word))
    return str(read_hub_page(word)) if _is_hub_page(word, hub_hosts) else word


def names_user(word: str) -> bool:
    """Whether a word has, or may be meant to have, a user name or a password before its host: they must not be recorded or shown.

    True also for a password that should have been escaped (`https://user:a/b@host`), which no parser finds.
    """
    scheme, _, rest = word.strip().partition(":")
    if word.startswith("/") or scheme.lower() in _WITH_VERSION or likely_registry_address(word):
        return False
    host, _, path = rest.removeprefix("//").partition("/")
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else "0"
    return "@" in host or ("@" in path and not port.isdigit())


def shown_address(address: str) -> str:
    """Return an address that was refused as it may be shown: without query and fragment; empty if it may name a user.

    An `@` is shown only where it is a part of a valid address: before a revision or a digest.
    """
    if "@" in address:
        try:
            address = canonical(address) if address.partition(":")[0].lower() in _WITH_VERSION else ""
        except ValueError:
            return ""
    return _QUERY.sub("", address)


def likely(word: str) -> str:
    """Return the address that an invalid word probably means; empty if there is none."""
    word = word.strip()
    if names_user(word):
        return ""
    found = _SCHEME.fullmatch(word)
    if found and (scheme := _likely_scheme(found["scheme"].lower(), may_be_name="/" not in word)):
        return _written(scheme, found["rest"])
    if meant := likely_registry_address(word):
        return meant
    if found := _HOST.match(word):
        return f"https://{word}"
    if _REPOSITORY.fullmatch(word) and not word.lower().endswith(".gguf"):
        return f"hf:{word}"
    return ""


def default_name(address: str) -> str:
    """Return the default name of a model: that of its file without the number of a part, if the canonical address has one; else ""."""
    if address.startswith("hf:"):
        try:
            return whole_name(read_hub_address(address).model_name)
        except ValueError:
            return ""
    if address.startswith(("ollama:", "oci:")):
        try:
            return read_registry_address(address).model_name
        except ValueError:
            return ""
    if address.startswith("quant:"):
        return address.partition(":")[2]
    # Only URLs are escaped, not S3 keys and paths.
    path = unquote(urlsplit(address).path) if "://" in address and not address.startswith("s3:") else address
    return whole_name(path.rpartition("/")[2])


def name_with_owner(address: str, present: str) -> str:
    """Return the default name of a model with its owner's in front, if the model `present`, also an address, is another owner's.

    Empty if an address names no owner, or both name the same one.
    """
    owner, other = _owner(address), _owner(present)
    return f"{owner}-{default_name(address)}" if owner and owner != other else ""


def _owner(address: str) -> str:
    """Return who a model belongs to: the owner of a repository of the Hub, or what stands before the name of a repository elsewhere."""
    try:
        if address.startswith("hf:"):
            return read_hub_address(address).owner
        if address.startswith(("ollama:", "oci:")):
            return read_registry_address(address).repository.rpartition("/")[0].replace("/", "-")
    except ValueError:
        pass
    return ""


def _likely_scheme(written: str, *, may_be_name: bool) -> str:
    """Return the scheme that is probably meant; empty for the name of a model before its tag, as in llama3:8b."""
    names = {name: name for name in SCHEMES} | _OTHER_NAMES
    if written in names:
        return names[written]
    if written.startswith("llama"):
        return ""
    # Letters in another order are like few others by the rates below, where a scheme has two letters.
    candidates = _WITHOUT_SLASH if may_be_name else names
    if turned := next((name for name in candidates if sorted(name) == sorted(written)), ""):
        return names[turned]
    if not may_be_name:
        return names.get(nearest(written, names, 0.7), "")
    if any(sign.isdigit() for sign in written):
        return ""
    # Names of models are like schemes too, so only one mistyped letter is taken for a mistake.
    return nearest(written, [name for name in _WITHOUT_SLASH if abs(len(name) - len(written)) <= 1], 0.88)


def _written(scheme: str, rest: str) -> str:
    if scheme in _SHORT:
        return f"{scheme}:{rest}"
    if scheme == "oci":
        host = rest.partition("/")[0]
        rest = rest if any(sign in host for sign in ".:") or host == "localhost" else f"{DOCKER_HUB}/{rest}"
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}"


def _is_hub_page(word: str, hub_hosts: Collection[str] = HUB_HOSTS) -> bool:
    scheme, separator, rest = word.partition("://")
    if separator and scheme.lower() not in {"https", "http"}:
        return False
    host, slash, path = (rest if separator else word).partition("/")
    other_file = path.startswith(("datasets/", "spaces/")) and "/resolve/" in path
    return host.lower() in hub_hosts and bool(slash and path) and not other_file
