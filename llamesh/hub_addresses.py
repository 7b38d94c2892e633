"""Addresses of models on the Hugging Face Hub: the forms in which people write them, and the one canonical form. Pure.

Canonical: `hf:OWNER/REPO`, then `@REVISION` unless it is main, then `:TYPE` in capitals (such as Q4_K_M) or `/PATH` of a file.
Invariant: two spellings of one place have the same canonical form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co"})
"""Hosts whose pages are the Hub's. The service adds the host of HF_ENDPOINT."""

_NAME = r"[A-Za-z0-9][\w.-]*"
_FORM = re.compile(
    rf"(?P<owner>{_NAME})/(?P<repo>{_NAME})(?:@(?P<revision>[^/:@\s]+))?(?::(?P<choice>[^/:@\s]+)|/(?P<path>\S.*))?/?",
    re.ASCII,
)
_NO_MODELS = frozenset({"datasets", "spaces", "docs", "models", "api", "collections", "papers", "blog", "settings"})
"""First path segments of pages that are not models."""
_EXPECTED = "a model of Hugging Face is hf:OWNER/REPO, hf:OWNER/REPO:Q4_K_M or hf:OWNER/REPO/FILE.gguf"


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository, a revision ("" means main), and the selected file: by `choice` (a type), by `path`, or by neither."""

    owner: str
    repo: str
    revision: str = ""
    choice: str = ""
    path: str = ""

    @property
    def repository(self) -> str:
        """Id of the repository on the Hub."""
        return f"{self.owner}/{self.repo}"

    @property
    def model_name(self) -> str:
        """The default name of the model: the file's name, else the repository's without -GGUF, with the type."""
        if self.path:
            return self.path.rpartition("/")[2]
        repo = re.sub(r"[-_.]gguf$", "", self.repo, flags=re.IGNORECASE)
        return f"{repo}:{self.choice}" if self.choice else repo

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        file = f":{quote(self.choice, safe='')}" if self.choice else f"/{quote(self.path)}" if self.path else ""
        return f"hf:{self.repository}{revision}{file}"


def read_hub_address(text: str) -> HubAddress:
    """Read `hf:...`, with or without the scheme. ValueError, with the right form, if it is not an address."""
    found = _FORM.fullmatch(re.sub(r"^hf:/{0,2}", "", text, flags=re.IGNORECASE))
    if found is None:
        raise ValueError(_EXPECTED)
    choice, path = unquote(found["choice"] or ""), unquote(found["path"] or "")
    if choice.lower().endswith(".gguf"):
        choice, path = "", choice
    return _address(found["owner"], found["repo"], unquote(found["revision"] or ""), choice=choice, path=path)


def read_hub_page(url: str) -> HubAddress:
    """Read the address of a page or a file of the Hub, with or without https://. ValueError if it is not that of a model."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    steps = [step for step in parts.path.split("/") if step]
    if len(steps) < 2 or steps[0] in _NO_MODELS:
        raise ValueError(f"the page is not that of a model; {_EXPECTED}")
    if len(steps) == 2:
        shown = parse_qs(parts.query).get("show_file_info", [""])[0]
        return read_hub_address("/".join([*steps, *([shown] if shown else [])]))
    owner, repo, kind, *rest = steps
    if kind == "tree" and rest:
        return _address(owner, repo, unquote(rest[0]))
    if kind in {"blob", "resolve", "raw"} and len(rest) > 1:
        return _address(owner, repo, unquote(rest[0]), path=unquote("/".join(rest[1:])))
    # The canonical form with the host as a prefix.
    return read_hub_address("/".join(steps))


def _address(owner: str, repo: str, revision: str, *, choice: str = "", path: str = "") -> HubAddress:
    if not re.fullmatch(_NAME, owner, re.ASCII) or not re.fullmatch(_NAME, repo, re.ASCII):
        raise ValueError(_EXPECTED)
    if ".." in path.split("/") or any(ord(character) < 32 for character in revision + choice + path):
        raise ValueError("the path of the file leads out of its repository")
    if path and not path.lower().endswith(".gguf"):
        raise ValueError(f"{path.rpartition('/')[2]} is no GGUF file; {_EXPECTED}")
    return HubAddress(owner, repo, "" if revision == "main" else revision, choice.upper(), path)
