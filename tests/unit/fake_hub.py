"""A FAKE of the Hugging Face Hub on loopback: the three calls that `services.download.sources.hub` makes, after the documented API.

GET /api/models?search=WORDS&filter=gguf&sort=downloads&direction=-1&limit=N finds repositories, and so does author=OWNER;
GET /api/models/OWNER/REPO/revision/REV?blobs=true lists a repository; GET /OWNER/REPO/resolve/COMMIT/PATH redirects to the bytes. It was
never compared with the real Hub, which no test reaches.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.unit.loopback import ALL_PATHS, serving
from tests.unit.web_objects import answer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """One repository. `files` by path; `gated` asks for the token in `readers`."""

    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    revisions: set[str] = field(default_factory=lambda: {"main"})
    gated: bool = False
    not_in_lfs: set[str] = field(default_factory=set)
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 that the listing says instead of the right one."""
    git_blobs: dict[str, bytes] = field(default_factory=dict)
    """Bytes of whose id the listing says that it is that of the file."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Size that the listing says instead of the right one."""
    downloads: int = 0
    tags: list[str] = field(default_factory=lambda: ["gguf"])
    hangs: bool = False
    """Whether its listing is never sent."""


class FakeHub:
    """What the Hub has, and what it was asked."""

    def __init__(self) -> None:
        self.host = ""
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        """Old to new names of repositories."""
        self.readers: set[str] = set()
        """Tokens that may read gated repositories."""
        self.asked: list[tuple[str, str]] = []
        """Path with query, and Authorization, of each request."""
        self.redirect = ""
        """Where bytes are said to be, instead of on this server."""
        self.cut_after: list[int] = []
        """Bytes after which the first answers with bytes are cut off."""
        self.found: Any = None
        """The answer to a search, instead of the right one."""
        self.end = asyncio.Event()
        """Ends the answers that hang."""
        self.after_cut: dict[str, bytes] = {}
        """What a file has become once an answer with its bytes was cut off."""

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.raw_path, request.headers.get("Authorization", "")))
        steps = request.path.strip("/").split("/")
        if steps == ["api", "models"]:
            return self._search(request)
        if steps[:2] == ["api", "models"]:
            repository = self.repositories.get("/".join(steps[2:4]))
            if repository is not None and repository.hangs:
                await self.end.wait()
            return self._listing(request, "/".join(steps[2:4]), request.raw_path)
        if steps[0] == "cdn":
            return await self._bytes(request, "/".join(steps[1:3]), "/".join(steps[3:]))
        name, commit, path = "/".join(steps[:2]), steps[3], "/".join(steps[4:])
        repository = self.repositories.get(name)
        if repository is None or not self._may_read(repository, request):
            return _error(403, "GatedRepo") if repository else _error(401, "RepoNotFound")
        if commit != repository.commit or path not in repository.files:
            return _error(404, "EntryNotFound")
        location = self.redirect or f"/cdn/{name}/{path}?signature=abc"
        return web.Response(status=302, headers={"Location": location, "X-Repo-Commit": commit})

    def _search(self, request: web.Request) -> web.Response:
        if self.redirect:
            return web.Response(status=302, headers={"Location": self.redirect})
        query = request.query
        words, owner = query.get("search", "").lower().split(), query.get("author", "")
        found = [
            {"id": name, "downloads": each.downloads, "likes": 7, "tags": each.tags}
            for name, each in self.repositories.items()
            if query.get("filter") in (None, *each.tags)
            and all(word in name.lower() for word in words)
            and owner in ("", name.partition("/")[0])
        ]
        assert (query["sort"], query["direction"]) == ("downloads", "-1")
        found.sort(key=lambda item: -int(str(item["downloads"])))
        return web.json_response(found[: int(query["limit"])] if self.found is None else self.found)

    def _listing(self, request: web.Request, name: str, raw_path: str) -> web.Response:
        if name in self.moved:
            return web.Response(status=307, headers={"Location": raw_path.replace(name, self.moved[name])})
        repository = self.repositories.get(name)
        if repository is None:
            return _error(401, "RepoNotFound")
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.readers:
            return _error(401, "", "Invalid credentials in Authorization header")
        if request.path.split("/revision/")[1] not in repository.revisions | {repository.commit}:
            return _error(404, "RevisionNotFound")
        siblings = [_sibling(repository, path, data) for path, data in repository.files.items()]
        return web.json_response(
            {"id": name, "sha": repository.commit, "gated": repository.gated, "siblings": siblings}
        )

    def _may_read(self, repository: Repository, request: web.Request) -> bool:
        return not repository.gated or request.headers.get("Authorization", "").removeprefix("Bearer ") in self.readers

    async def _bytes(self, request: web.Request, name: str, path: str) -> web.StreamResponse:
        data = self.repositories[name].files[path]
        whole = answer(request, data, f'"{hashlib.md5(data).hexdigest()}"')
        if not self.cut_after:
            return whole
        response = web.StreamResponse(status=whole.status, headers=whole.headers)
        body = whole.body
        assert isinstance(body, bytes)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: self.cut_after.pop(0)])
        self.repositories[name].files[path] = self.after_cut.get(path, data)
        assert request.transport is not None
        request.transport.close()
        return response


def _sibling(repository: Repository, path: str, data: bytes) -> dict[str, Any]:
    size = repository.sizes.get(path, len(data))
    whole = repository.git_blobs.get(path, data)
    blob = hashlib.sha1(b"blob %d\0%b" % (len(whole), whole)).hexdigest()
    entry: dict[str, Any] = {"rfilename": path, "size": size, "blobId": blob}
    if path not in repository.not_in_lfs:
        digest = repository.digests.get(path, hashlib.sha256(data).hexdigest())
        entry["lfs"] = {"sha256": digest, "size": size, "pointerSize": 134}
    return entry


def _error(status: int, code: str, message: str = "") -> web.Response:
    headers = {"X-Error-Code": code} if code else {}
    return web.Response(status=status, headers={**headers, "X-Error-Message": message or code})


@asynccontextmanager
async def fake_hub() -> AsyncIterator[FakeHub]:
    """A running fake on a free port of loopback."""
    state = FakeHub()
    async with serving({ALL_PATHS: state.handle}) as state.host:
        try:
            yield state
        finally:
            state.end.set()
