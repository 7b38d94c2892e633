"""Addresses of models in registries: Ollama's, and those of the OCI distribution specification. Pure.

Canonical: `ollama:NAME` or `ollama:OWNER/NAME` of Ollama's registry, `oci://HOST/REPOSITORY` of any other; then `:TAG` unless it is
latest, or `@sha256:DIGEST` of a manifest; then `#sha256:DIGEST` of one of its layers.
Invariant: two spellings of one place have the same canonical form. A digest decides, so a tag beside it is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

OLLAMA_HOSTS = frozenset({"ollama.com", "www.ollama.com", "ollama.ai", "registry.ollama.ai"})
"""Hosts whose pages are those of Ollama's registry."""
DOCKER_HUB = "docker.io"
DOCKER_HUB_HOSTS = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "hub.docker.com", "www.docker.io"})
"""Names of Docker Hub in addresses and in Docker's own configuration."""
REGISTRY_HOSTS = DOCKER_HUB_HOSTS | {
    "ghcr.io",
    "quay.io",
    "registry.gitlab.com",
    "gcr.io",
    "public.ecr.aws",
    "mcr.microsoft.com",
}
"""Hosts that are known to be registries, so that `HOST/NAME` without a scheme is taken for one."""

MAX_REPOSITORY = 255
"""Maximum number of characters of the name of a repository, which the clients of the specification agree on."""
_LIBRARY = "library"
_LATEST = "latest"
_REST = re.compile(
    r"(?P<name>[^:@#\s]+)(?::(?P<tag>[^:@#/\s]*))?(?:@(?P<digest>[^@#\s]*))?(?:#(?P<layer>\S*))?", re.ASCII
)
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_PART = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*", re.ASCII)
_OLLAMA_PART = re.compile(r"[A-Za-z0-9_][\w.-]{0,79}", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_EXPECTED_OLLAMA = "a model of Ollama's registry is ollama:NAME, ollama:NAME:TAG or ollama:OWNER/NAME:TAG"
_EXPECTED_OCI = "a model in a registry is oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:DIGEST"


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """A manifest of a repository, by tag or digest, and one of its layers or "". `host` is "" for Ollama's registry.

    Digests are SHA-256 in hexadecimal digits; the digest of the manifest is "" if the tag names it.
    """

    host: str
    repository: str
    tag: str = _LATEST
    digest: str = ""
    layer: str = ""

    @property
    def model_name(self) -> str:
        """The default name of the model: the last part of the repository's name, with the tag unless it is latest."""
        name = self.repository.rpartition("/")[2]
        return f"{name}:{self.tag}" if not self.digest and self.tag != _LATEST else name

    @property
    def place(self) -> str:
        """The repository with its registry, without tag and digest, as an address."""
        return f"oci://{self.host}/{self.repository}" if self.host else f"ollama:{self._short}"

    def __str__(self) -> str:
        version = f"@sha256:{self.digest}" if self.digest else f":{self.tag}" if self.tag != _LATEST else ""
        return f"{self.place}{version}{f'#sha256:{self.layer}' if self.layer else ''}"

    @property
    def _short(self) -> str:
        return self.repository.removeprefix(f"{_LIBRARY}/")


def read_registry_address(text: str) -> RegistryAddress:
    """Read `ollama:...` or `oci:...`. ValueError, with the right form, if it is not an address."""
    scheme, _, rest = text.partition(":")
    rest = rest.removeprefix("//").rstrip("/")
    if scheme.lower() == "oci":
        return _read_oci(rest)
    host, slash, path = rest.partition("/")
    # Ollama's command takes names with the host too.
    return _read_ollama(path if slash and host.lower() in OLLAMA_HOSTS else rest)


def is_ollama_page(word: str) -> bool:
    """Whether a word is a page of Ollama's registry, with or without https://, but not the address of the bytes of a file."""
    host, path = _page(word)
    return host in OLLAMA_HOSTS and bool(path) and "/blobs/sha256" not in path


def read_ollama_page(word: str) -> RegistryAddress:
    """Read a page of ollama.com or a name of registry.ollama.ai. ValueError if it is not that of a model."""
    steps = [step for step in _page(word)[1].split("/") if step]
    if steps[0] == "v2" and len(steps) == 5 and steps[3] == "manifests":
        version = f"@{steps[4]}" if _DIGEST.fullmatch(steps[4]) else f":{steps[4]}"
        return _read_ollama(f"{steps[1]}/{steps[2]}{version}")
    if len(steps) == 1 or len(steps) > 3 or (len(steps) == 3 and steps[2] != "tags"):
        raise ValueError(f"the page is not that of a model; {_EXPECTED_OLLAMA}")
    return _read_ollama("/".join(steps[:2]))


def likely_registry_address(word: str) -> str:
    """Return the address that a word without a valid scheme probably means, "" if it means none: HOST/NAME:TAG or NAME:TAG."""
    host, slash, path = word.partition("/")
    if word.lower().endswith(".gguf"):
        return ""
    if not slash:
        meant = f"ollama:{word}" if ":" in word else ""
    elif host.lower() in REGISTRY_HOSTS:
        meant = f"oci://{host}/{path.removeprefix('r/') if host.lower() == 'hub.docker.com' else path}"
    else:
        named = "." in host and (":" in path.rpartition("/")[2])
        meant = f"oci://{word}" if named else ""
    try:
        return str(read_registry_address(meant)) if meant else ""
    except ValueError:
        return ""


def _page(word: str) -> tuple[str, str]:
    """Return host and path of a page; "" for both if the word has another scheme."""
    scheme, separator, _ = word.partition("://")
    if separator and scheme.lower() not in {"https", "http"}:
        return "", ""
    try:
        parts = urlsplit(word if separator else f"https://{word}")
        return (parts.hostname or "", unquote(parts.path).strip("/"))
    except ValueError:
        return "", ""


def _read_ollama(rest: str) -> RegistryAddress:
    name, tag, digest, layer = _fields(rest, _EXPECTED_OLLAMA)
    steps = name.split("/")
    if len(steps) > 2 or not all(_OLLAMA_PART.fullmatch(step) for step in steps):
        raise ValueError(_EXPECTED_OLLAMA)
    return RegistryAddress("", name if len(steps) == 2 else f"{_LIBRARY}/{name}", tag, digest, layer)


def _read_oci(rest: str) -> RegistryAddress:
    host, slash, path = rest.partition("/")
    host = host.lower()
    if not slash or not path or not _HOST.fullmatch(host):
        raise ValueError(_EXPECTED_OCI)
    if not any(sign in host for sign in ".:") and host != "localhost":
        meant = _read_oci(f"{DOCKER_HUB}/{rest}")
        raise ValueError(f"{host} is no host of a registry: did you mean {meant}?")
    name, tag, digest, layer = _fields(path, _EXPECTED_OCI)
    if name != name.lower():
        raise ValueError(
            f"names of repositories have no capitals: did you mean oci://{host}/{path.replace(name, name.lower())}?"
        )
    if len(name) > MAX_REPOSITORY or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"{name[:100]!r} is no name of a repository: {_EXPECTED_OCI}")
    if host in OLLAMA_HOSTS:
        return _read_ollama(path)
    if host in DOCKER_HUB_HOSTS:
        host, name = DOCKER_HUB, name if "/" in name else f"{_LIBRARY}/{name}"
    return RegistryAddress(host, name, tag, digest, layer)


def _fields(rest: str, expected: str) -> tuple[str, str, str, str]:
    """Return name, tag, and the digests of manifest and layer of the part of an address behind the host."""
    found = _REST.fullmatch(rest)
    if found is None:
        raise ValueError(expected)
    # First the digest, because the message about a tag quotes it: the text before an @ without a digest may be a password.
    digest, layer = _digest(found["digest"], expected), _digest(found["layer"], expected)
    tag = _LATEST if found["tag"] is None else found["tag"]
    if not _TAG.fullmatch(tag):
        raise ValueError(
            f"{tag[:100]!r} is no tag: it has 1 to 128 letters, digits, dots, hyphens and underscores; {expected}"
        )
    return found["name"], _LATEST if digest else tag, digest, layer


def _digest(given: str | None, expected: str) -> str:
    if given is None:
        return ""
    found = _DIGEST.fullmatch(given.lower())
    if found is None:
        raise ValueError(f"a digest is sha256: with 64 hexadecimal digits; {expected}")
    return found[1]
