"""A FAKE of a registry on loopback, after the OCI distribution specification and its token authentication.

`GET /v2/NAME/manifests/REFERENCE`, `GET /v2/NAME/blobs/DIGEST` (redirected to /cdn, with ranges), `GET /v2/NAME/tags/list`, and
`GET /token`. With `asks`, each needs a bearer token of the repository. As Ollama's registry it also answers a manifest's digest as a blob.
It was never compared with a real registry, which no test reaches.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.unit.loopback import ALL_PATHS, serving
from tests.unit.web_objects import answer

OLLAMA_MODEL = "application/vnd.ollama.image.model"
DOCKER_MODEL = "application/vnd.docker.ai.gguf.v3"
ORAS_DEFAULT = "application/vnd.oci.image.layer.v1.tar"
"""What `oras push` gives to a file without a type."""
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    """The digest of bytes, as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def titled(name: str) -> dict[str, str]:
    """The annotations of a layer whose file has a name."""
    return {"org.opencontainers.image.title": name}


def tar_of(name: str, data: bytes) -> bytes:
    """A tar file of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


@dataclass
class Repository:
    """One repository: its blobs and manifests by digest, and its tags."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class FakeRegistry:
    """What the registry has, and what it was asked."""

    def __init__(self) -> None:
        self.host = ""
        self.repositories: dict[str, Repository] = {}
        self.asks = ""
        """The scheme of its challenge: bearer, basic, or none."""
        self.login: tuple[str, str] | None = None
        """User name and password without which its token service gives no token."""
        self.realm = ""
        """The realm of its challenge, instead of its own."""
        self.lists_tags = True
        self.redirect = ""
        """Where bytes are said to be, instead of on this server."""
        self.etag = ""
        """The ETag of its bytes, instead of the right one."""
        self.token_answer: Any = None
        """The answer of the token service, instead of the right one."""
        self.tokens: dict[str, str] = {}
        """Repository by token."""
        self.asked: list[tuple[str, str]] = []
        """Path with query, and Authorization, of each request."""

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def push(
        self, name: str, tag: str, layers: list[tuple[str, bytes] | tuple[str, bytes, Mapping[str, str]]], **fields: Any
    ) -> str:
        """Store a manifest with layers of these types, contents and annotations. Returns its digest."""
        repository = self.repositories.setdefault(name, Repository())
        described = []
        for media_type, data, *rest in layers:
            repository.blobs[digest(data)] = data
            described.append({"mediaType": media_type, "digest": digest(data), "size": len(data)})
            if rest:
                described[-1]["annotations"] = dict(rest[0])
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": digest(b"{}"), "size": 2}
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": described, **fields}
        return self.put(name, tag, document)

    def put(self, name: str, tag: str, document: object) -> str:
        """Store a manifest or an index as it is. Returns its digest."""
        repository = self.repositories.setdefault(name, Repository())
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        repository.manifests[digest(body)] = body
        if tag:
            repository.tags[tag] = digest(body)
        return digest(body)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.raw_path, request.headers.get("Authorization", "")))
        steps = request.path.strip("/").split("/")
        if steps == ["token"]:
            return self._token(request)
        if steps[0] == "cdn":
            data = self.repositories["/".join(steps[1:-1])].blobs[steps[-1]]
            return answer(request, data, self.etag or f'"{hashlib.md5(data).hexdigest()}"')
        assert steps[0] == "v2"
        if steps == ["v2"]:
            return self._challenge("") if self.asks else web.json_response({})
        name, kind, reference = "/".join(steps[1:-2]), steps[-2], steps[-1]
        if self.asks and not self._may_read(request, name):
            return self._challenge(name)
        repository = self.repositories.get(name)
        if repository is None:
            return _error(404, "NAME_UNKNOWN")
        if kind == "tags":
            return web.json_response({"name": name, "tags": list(repository.tags)}) if self.lists_tags else _error(404)
        if kind == "manifests" or reference in repository.manifests:
            body = repository.manifests.get(repository.tags.get(reference, reference))
            return web.Response(body=body, content_type=MANIFEST) if body is not None else _error(404)
        if reference not in repository.blobs:
            return _error(404, "BLOB_UNKNOWN")
        location = self.redirect or f"/cdn/{name}/{reference}?signature=abc"
        return web.Response(status=307, headers={"Location": location})

    def _may_read(self, request: web.Request, name: str) -> bool:
        sent = request.headers.get("Authorization", "")
        if self.asks == "basic":
            return self.login is not None and sent == _basic(*self.login)
        return self.tokens.get(sent.removeprefix("Bearer ")) == name

    def _challenge(self, name: str) -> web.Response:
        realm = self.realm or f"{self.url}/token"
        words = f'Bearer realm="{realm}",service="{self.host}",scope="repository:{name}:pull"'
        header = words if self.asks == "bearer" else 'Basic realm="models"'
        return web.Response(status=401, headers={"WWW-Authenticate": header})

    def _token(self, request: web.Request) -> web.Response:
        if self.token_answer is not None:
            return web.json_response(self.token_answer)
        if self.login is not None and request.headers.get("Authorization", "") != _basic(*self.login):
            return _error(401)
        name = request.query["scope"].removeprefix("repository:").removesuffix(":pull")
        assert request.query["service"] == self.host
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = name
        return web.json_response({"token": token, "expires_in": 300})


def _basic(name: str, password: str) -> str:
    return f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"


def _error(status: int, code: str = "MANIFEST_UNKNOWN") -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": "unknown"}]}, status=status)


@asynccontextmanager
async def fake_registry() -> AsyncIterator[FakeRegistry]:
    """A running fake on a free port of loopback."""
    state = FakeRegistry()
    async with serving({ALL_PATHS: state.handle}) as state.host:
        yield state
